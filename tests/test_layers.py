"""The house rules that a machine can check."""

import ast

import pytest
from conftest import ROOT

PACKAGE = ROOT / "antisd_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
# What a module may import from the package, by the first part of its path. See BUILD.md.
BELOW = {
    "errors": set(),
    "files": {"errors"},
    "types": set(),
    "arrays": set(),
    "batching": set(),
    "watchdog": set(),
    "processes": {"errors"},
    "objective": {"errors"},
    "rewards": {"errors"},
    "text": {"errors", "files", "rewards", "tiny"},
    "model": {"errors", "arrays"},
    "rollout": {"types", "arrays", "batching", "model", "processes"},
    "score": {"types", "arrays", "model"},
    "learner": {"types", "arrays", "model", "score", "objective"},
    "checkpoint": {"errors", "types", "arrays", "log", "processes"},
    "log": {"errors", "files", "processes"},
    "steps": {
        "errors",
        "types",
        "arrays",
        "batching",
        "model",
        "rollout",
        "score",
        "learner",
        "objective",
        "text",
        "tiny",
        "rewards",
        "processes",
    },
    "evaluate": {"errors", "steps", "model", "results", "rollout", "text", "rewards"},
    "metrics": {"arrays", "objective", "rewards", "text"},
    "plan": {"model", "rollout", "score", "steps"},
    "problems": {"errors", "files", "log", "processes", "steps", "text"},
    "report": {"config", "errors", "files", "results", "text", "watchdog"},
    "tiny": {"errors", "arrays", "learner", "model", "score", "text", "types"},
    "convert": {"errors", "checkpoint", "log", "model"},
    "generate_file": {"errors", "types", "arrays", "files", "log", "model", "rollout", "score", "steps", "text"},
    "score_file": {"errors", "batching", "files", "types", "log", "model", "score", "steps", "text"},
    "results": set(),
    "evaluate_model": {
        *("errors", "files", "arrays", "checkpoint", "config", "evaluate", "log", "model", "problems", "report", "results", "rewards"),
        *("score", "steps"),
    },
    "keys": {"config"},
    "sweep": {"errors", "config", "files", "report"},
    "dump": {"errors", "objective", "types"},
    "replay": {"errors", "arrays", "config", "dump", "files", "log", "objective", "results", "steps", "text"},
    "trace": {
        *("errors", "arrays", "checkpoint", "config", "files", "log", "model", "objective", "problems", "report", "rewards", "score"),
        *("steps", "text"),
    },
    "hardware": {"errors"},
    "aot": {
        *("errors", "batching", "config", "hardware", "learner", "log", "model", "rollout", "score", "steps", "types"),
    },
    "bench": {"errors", "arrays", "config", "model", "rollout", "score", "steps"},
    "grade_file": {"errors", "files", "log", "rewards", "text"},
    "config": {"errors", "checkpoint", "evaluate", "learner", "model", "objective", "rewards", "rollout", "text", "watchdog", "processes"},
}
TOP = {"train", "ahead", "cli", "__main__", "__init__"}


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names)


def part(file):
    relative = file.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_downwards(file):
    mine = part(file)
    if mine in TOP:
        return
    wanted = {m.split(".")[1] for m in imports(file) if m.startswith("antisd_jax.")}
    assert wanted - {mine} <= BELOW[mine]


@pytest.mark.parametrize("file", [f for f in FILES if part(f) in ("text", "rewards", "errors", "files", "watchdog")], ids=lambda f: f.stem)
def test_text_and_graders_do_not_import_jax(file):
    assert not {m.split(".")[0] for m in imports(file)} & {"jax", "flax", "optax", "orbax"}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_files_and_functions_stay_within_the_budget(file):
    text = file.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 60, node.name


def test_the_training_loop_stays_readable():
    steps = {n.name: n.end_lineno - n.lineno + 1 for n in ast.parse((PACKAGE / "train.py").read_text()).body if hasattr(n, "name")}
    assert sum(steps[name] for name in ("loop", "sample", "improve")) <= 60 and max(steps.values()) <= 45
