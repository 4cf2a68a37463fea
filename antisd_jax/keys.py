"""`antisd keys`: every key of a configuration with type, default and meaning, read from the code itself.

A key's meaning is the comment behind it, or what its class's docstring says after "key: " or "key, other key: ".
"""

import ast
import dataclasses
import inspect
import re
import typing

from antisd_jax.config import Config


def keys() -> list[dict]:
    """Rows of key, type, default, meaning and source, in the order of the code."""
    return list(_rows(Config(), ""))


def _rows(section, path: str):
    cls = type(section)
    hints, told, source = typing.get_type_hints(cls), meanings(cls), cls.__module__.replace(".", "/") + ".py"
    for f in dataclasses.fields(cls):
        kind, value = hints[f.name], getattr(section, f.name)
        if dataclasses.is_dataclass(kind):
            yield from _rows(value, f"{path}{f.name}.")
            continue
        name = "list of " + typing.get_args(kind)[0].__name__ if typing.get_origin(kind) is tuple else kind.__name__
        yield {"key": path + f.name, "type": name, "default": _shown(value), "meaning": told.get(f.name, ""), "source": source}


def _shown(value) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else '""' if value == "" else str(value).replace("\n", "⏎")


def meanings(cls) -> dict[str, str]:
    """Field → what the code says of it."""
    source = inspect.getsource(cls)
    lines, out = source.split("\n"), {}
    names = [f.name for f in dataclasses.fields(cls)]
    text = " ".join((ast.get_docstring(ast.parse(source).body[0]) or "").split())
    heads = re.compile(rf"(?:^|(?<=[.;:] ))((?:{'|'.join(names)})(?:, (?:{'|'.join(names)}))*): ")
    found = list(heads.finditer(text))
    for head, following in zip(found, [*found[1:], None]):
        said = text[head.end() : following.start() if following else len(text)].strip()
        for name in head.group(1).split(", "):
            out[name] = said
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign) and "  # " in (line := lines[node.end_lineno - 1]):
            out[node.target.id] = line.split("  # ", 1)[1].strip()
    return {name: said.rstrip(";:. ") for name, said in out.items()}


def markdown() -> str:
    """The table, a section a heading."""
    out = [
        "# Configuration keys",
        "",
        "`antisd keys` prints this page, and a test holds it to the code. On the command line: `--key=value`; in YAML, sections.",
    ]
    section = None
    for row in keys():
        head = row["key"].rpartition(".")[0] or "run"
        if head != section:
            out += ["", f"## {head}", "", f"`{row['source']}`", "", "| key | type | default | meaning |", "| --- | --- | --- | --- |"]
            section = head
        cells = [row["key"], row["type"], f"`{row['default']}`", row["meaning"]]
        out.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(out) + "\n"
