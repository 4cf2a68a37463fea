"""`antisd sweep`: a matrix of methods × seeds × any keys, run one after another, or printed as one command a line.

`antisd sweep FILE.yaml [--print=true] [--output=DIR] [--key=value …]`. FILE.yaml:

    output: runs/sweeps/embedded         # each run gets a folder in it, named by what tells it apart
    base: [configs/smoke.yaml]           # files of every run
    set: {steps: 30, method.lam_max: 0.2}
    matrix:                              # or a list of such mappings, all of whose combinations are run
      method: [grpo, antisd]             # configs/methods/NAME.yaml
      context: [none, other]             # configs/contexts/NAME.yaml; model and hardware likewise
      seed: [0, 1, 2]                    # any key of a configuration

Later keys win: base, then files of the matrix, then set, then keys of the matrix, then the command's. The same command goes on where it was
stopped: finished runs are passed over. It ends with the report of all runs in DIR/report.html.
"""

import json
import shlex
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import yaml

from antisd_jax.config import Config, build, differences, load, plain_yaml, read_yaml
from antisd_jax.errors import UserError, nearest
from antisd_jax.files import read_jsonl, stopped
from antisd_jax.report.compare import write_comparison

FOLDERS = {"method": "methods", "context": "contexts", "model": "models", "hardware": "hardware"}  # under configs/
KEYS = ("output", "base", "set", "matrix")


@dataclass(frozen=True)
class Job:
    """One run: the arguments of `antisd train`, but for --output, and its folder."""

    files: tuple[str, ...]
    options: tuple[str, ...]
    folder: Path

    @property
    def arguments(self) -> list[str]:
        return ["train", *self.files, *(f"--{o}" for o in self.options), f"--output={self.folder}"]

    def finished(self) -> bool:
        """Its last step, or that at which its watchdog ended it, is logged and kept, under this very configuration: anything else is for
        `antisd train` to go on with, or to refuse."""
        rows, path = read_jsonl(self.folder / "metrics.jsonl"), self.folder / "config.yaml"
        wanted = load(list(self.files), list(self.options))
        why, last = stopped(self.folder, wanted.watchdog.stop), rows[-1]["step"] if rows else 0
        ended = last >= wanted.steps or bool(why and why["step"] == last)  # it may have gone on since, without that mode
        if not rows or not ended or not (self.folder / "checkpoints" / str(last)).is_dir():
            return False
        return not differences(build(Config, read_yaml(path)), wanted)


def jobs(file: str, options: list[str]) -> tuple[Path, list[Job]]:
    """(output folder, all runs). Raises UserError for what is no sweep, or a run whose configuration is wrong."""
    sweep = read_yaml(file)
    if unknown := [key for key in sweep if key not in KEYS]:
        raise UserError(f"{file}: unknown key {unknown[0]!r}{nearest(str(unknown[0]), KEYS)}; a sweep has {', '.join(KEYS)}")
    empty = {"output": f"runs/sweeps/{Path(file).stem}", "base": [], "set": {}, "matrix": {}}
    sweep = {key: sweep.get(key) or nothing for key, nothing in empty.items()}
    for key, kind, what in (("output", str, "a folder"), ("base", list, "a list of files"), ("set", dict, "a mapping of keys to values")):
        if not isinstance(sweep[key], kind) or (key == "base" and not all(isinstance(name, str) for name in sweep[key])):
            raise UserError(f"{file}: {key}: got {sweep[key]!r}, wanted {what}")
    given = dict(option.split("=", 1) for option in options)
    output = Path(given.pop("output", sweep["output"]))
    matrices = sweep["matrix"]
    matrices = matrices if isinstance(matrices, list) else [matrices]
    for matrix in matrices:
        wrong = (
            [k for k, values in matrix.items() if not isinstance(values, list) or not values] if isinstance(matrix, dict) else ["matrix"]
        )
        if wrong:
            raise UserError(f"{file}: {wrong[0]} of the matrix wants a list of values")
    if fixed := [k for k in given if any(k in matrix for matrix in matrices)]:
        raise UserError(f"--{fixed[0]}: the matrix of {file} varies it; runs are named by what the matrix says")
    told = {k for k in (k for m in matrices for k in m) if len({str(v) for m in matrices for v in m.get(k, [])}) > 1} | {"method", "seed"}
    out: dict[Path, Job] = {}
    for matrix in matrices:
        for values in product(*matrix.values()):
            job = one(output, sweep, dict(zip(matrix, values)), given, told)
            load(list(job.files), list(job.options))
            if out.setdefault(job.folder, job) != job:
                raise UserError(f"{file}: two runs would be called {job.folder.name}")
    return output, list(out.values())


def one(output: Path, sweep: dict, chosen: dict, given: dict, told: set[str]) -> Job:
    """The run of one cell of the matrix; `told` are the keys that its name tells."""
    files, keys, parts = list(sweep["base"]), dict(sweep["set"]), []
    for key, value in chosen.items():
        if key in FOLDERS:
            files.append(f"configs/{FOLDERS[key]}/{value}.yaml")
        else:
            keys[key] = value
        if key in told:
            parts.append(str(value) if key in FOLDERS else f"{str(key).rpartition('.')[2]}{Path(str(value)).name}")
    return Job(
        tuple(files),
        (*(f"{k}={written(v)}" for k, v in keys.items() if k not in given), *(f"{k}={v}" for k, v in given.items())),
        output / ("-".join(parts) or "run"),
    )


def written(value) -> str:
    """As a command gives it, so that it is read as the same value again."""
    with suppress(yaml.YAMLError):
        if isinstance(value, str) and plain_yaml(value) == value:
            return value
    return json.dumps(value, ensure_ascii=False)


def sweep(file: str, options: list[str], only_print: bool = False) -> int:
    """Run, or print. Returns the status of the first run that failed, after which nothing more is run."""
    output, todo = jobs(file, options)
    if only_print:
        print("\n".join(shlex.join(["antisd", *job.arguments]) for job in todo))
        return 0
    for number, job in enumerate(todo, 1):
        if job.finished():
            print(f"[{number}/{len(todo)}] {job.folder} is there", flush=True)
            continue
        print(f"[{number}/{len(todo)}] {shlex.join(['antisd', *job.arguments])}", flush=True)
        status = subprocess.run([sys.executable, "-m", "antisd_jax", *job.arguments]).returncode
        if status and job.finished():
            print(f"[{number}/{len(todo)}] was ended by its watchdog", flush=True)
        elif status:
            print(f"[{number}/{len(todo)}] ended with status {status}; the same command goes on from there", file=sys.stderr, flush=True)
            return status
    print(f"report: {write_comparison([str(job.folder) for job in todo], str(output))}")
    return 0
