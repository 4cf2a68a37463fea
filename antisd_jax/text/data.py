"""Problems: one schema, read from JSONL, in an order that is a function of the seed and a global cursor."""

import json
from dataclasses import dataclass
from pathlib import Path

from antisd_jax.errors import UserError

FIELDS = ("problem", "answer", "solution", "source", "id")


@dataclass(frozen=True)
class Problem:
    """One problem. index: its row in the file, which names it in every derived random number. prompt_ids: the student's."""

    index: int
    problem: str
    answer: str
    solution: str | None
    source: str
    id: str
    prompt_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class DataConfig:
    """path: a JSONL file, one {"problem", "answer", "solution", "source", "id"} a row. limit: first rows only, 0 all."""

    path: str = "countdown:train"
    limit: int = 0


def locate(path: str) -> Path:
    """A file of problems. countdown:train and countdown:eval are the embedded ones."""
    if path.startswith("countdown:"):
        from antisd_jax.tiny import HERE

        return HERE / f"{path.removeprefix('countdown:')}.jsonl"
    return Path(path)


def load(config: DataConfig, key: str) -> list[Problem]:
    """All problems of a file. `key` names the config section in errors, which give the row number and what it lacks."""
    path = locate(config.path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines() would also cut at U+2028 inside a string
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{key}.path: {config.path} cannot be read: {e.strerror if isinstance(e, OSError) else e}") from None
    problems = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if config.limit and len(problems) == config.limit:
            break
        problems.append(parse_row(line, f"{config.path} row {number}", len(problems)))
    if not problems:
        raise UserError(f"{key}.path: {config.path} holds no problems")
    return problems


def parse_row(line: str, where: str, index: int) -> Problem:
    """One JSONL line → Problem. Raises UserError saying what the row lacks."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as e:
        raise UserError(f"{where}: not JSON: {e}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: a {type(row).__name__}, wanted an object")
    for name in ("problem", "answer"):
        if not str(row.get(name) if row.get(name) is not None else "").strip():
            raise UserError(f"{where}: no {name}")
    return Problem(
        index=index,
        problem=str(row["problem"]),
        answer=str(row["answer"]),
        solution=row.get("solution") or None,
        source=str(row.get("source") or ""),
        id=str(row.get("id") or index),
    )


class Order:
    """The endless sequence of problems: each epoch a fresh permutation, any place of it at once from a global cursor."""

    def __init__(self, problems: list[Problem], seed: int):
        import grain

        self.problems = problems
        self.sequence = grain.MapDataset.range(len(problems)).shuffle(seed=seed).repeat()

    def take(self, cursor: int, count: int) -> list[Problem]:
        """Problems number cursor … cursor + count − 1."""
        return [self.problems[self.sequence[i]] for i in range(cursor, cursor + count)]
