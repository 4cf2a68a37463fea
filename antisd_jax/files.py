"""Files that users see: written whole or not at all, read with every line accounted for."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from antisd_jax.errors import UserError

STOPPED = "stopped.json"  # in the folder of a run that its watchdog ended


def write_atomically(path: Path, text: str) -> None:
    """The file has its old content or the new one, never a part. A link stays one; what is no file (a pipe) is written to."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def append_rows(path: Path, rows: list[dict]) -> None:
    """More rows at the end of a JSONL file, after a torn last line has been cut off."""
    if path.exists() and path.stat().st_size:
        with open(path, "rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                whole = path.read_bytes()
                file.truncate(whole.rfind(b"\n") + 1)
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict]:
    """Complete rows of a JSONL file; a torn last line, as a killed process leaves it, is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def read_rows(path: Path, name: str = "input") -> Iterator[tuple[int, dict]]:
    """(line number, object) of every line of a JSONL file that is not blank; `name` is what the user calls the file.

    Raises UserError for a file that cannot be read and a line that holds no object.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines() would also cut at U+2028 inside a string
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{name}: {path} cannot be read: {getattr(e, 'strerror', None) or 'not UTF-8 text'}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise UserError(f"{path}, line {number}: not JSON that can be read: {e}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: wanted an object, got {type(row).__name__}")
        yield number, row


def check_output(path: str) -> None:
    """Raises UserError where a file could not be written after all the work."""
    if Path(path).is_dir() or not Path(path).absolute().parent.is_dir():
        raise UserError(f"output {path}: wanted a file in a folder that exists")


def stopped(folder: Path, modes: tuple[str, ...]) -> dict | None:
    """Step, mode and reason of a run's end by its watchdog, if that is one of the modes that still are to end it."""
    rows = [row for row in read_jsonl(folder / STOPPED) if row["mode"] in modes]
    return rows[0] if rows else None
