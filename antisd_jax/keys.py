"""`antisd keys`: every key of a configuration with type, unit, default, meaning and the default's origin, read from the code itself.

A key's meaning is the comment behind it, or what its class's docstring says after "key: " or "key, other key: ". Both end with
the key's unit and its default's origin, as in "of training in all [steps; paper]".
"""

import ast
import dataclasses
import inspect
import re
import typing

from antisd_jax.config import Config

NONE = "–"
UNITS = {
    "tokens": "",
    "steps": "of training",
    "updates": "of the weights, one or more in a step of training",
    "problems": "",
    "rollouts": "responses, each of some problem",
    "checkpoints": "",
    "devices": "",
    "processes": "",
    "seconds": "",
    "MiB": "",
    "nats": "",
    "share": "a fraction, 0 to 1",
    "multiple": "of the level that the meaning names",
    NONE: "a switch, a name, or a number without a unit",
}
ORIGINS = {
    "paper": "arXiv 2605.11609; what the released code adds to it is off by default",
    "verl": "the default of verl, the framework that the paper's code is built on",
    "released code": "the code published with it; where it differs, its values are in `configs/methods/antisd_released.yaml`",
    "ours": "chosen here, where the others have no such key or are not known to say, and numbers for the embedded task",
    NONE: "a path, a name, or what depends on the user alone",
}


def keys() -> list[dict]:
    """Rows of key, type, unit, default, meaning, origin and source (the file), in the order of the code."""
    return list(_rows(Config(), ""))


def _rows(section, path: str):
    cls = type(section)
    hints, told, source = typing.get_type_hints(cls), comments(cls), cls.__module__.replace(".", "/") + ".py"
    for f in dataclasses.fields(cls):
        kind, value = hints[f.name], getattr(section, f.name)
        if dataclasses.is_dataclass(kind):
            yield from _rows(value, f"{path}{f.name}.")
            continue
        name = "list of " + typing.get_args(kind)[0].__name__ if typing.get_origin(kind) is tuple else kind.__name__
        meaning, unit, origin = split(told.get(f.name, ""))
        row = {"key": path + f.name, "type": name, "unit": unit, "default": _shown(value)}
        yield row | {"meaning": meaning, "origin": origin, "source": source}


def _shown(value) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else '""' if value == "" else str(value).replace("\n", "⏎")


def split(said: str) -> tuple[str, str, str]:
    """ "meaning [unit; origin]" → its three parts; unit and origin are empty where the brackets are missing or of another form."""
    found = re.fullmatch(r"(.*?) \[([^][;]+); ([^][;]+)\]", said)
    return found.groups() if found else (said, "", "")


def comments(cls) -> dict[str, str]:
    """Field → the text of it in the code, with unit and origin."""
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
        "",
        "The unit is the value's. " + "; ".join(f"**{name}**: {said}" for name, said in UNITS.items() if said) + ".",
        "",
        "The origin is the default's: who chose that value. " + "; ".join(f"**{name}**: {said}" for name, said in ORIGINS.items()) + ".",
        "A preset of `configs/` sets other values where its task or method needs them.",
    ]
    section, columns = None, ("key", "type", "unit", "default", "meaning", "origin")
    for row in keys():
        head = row["key"].rpartition(".")[0] or "run"
        if head != section:
            out += ["", f"## {head}", "", f"`{row['source']}`", "", f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
            section = head
        cells = [f"`{row[c]}`" if c == "default" else row[c] for c in columns]
        out.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(out) + "\n"
