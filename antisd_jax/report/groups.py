"""Several runs side by side, without drawing: which belong together, curves with intervals over seeds and problems, tables."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from antisd_jax.config import FREE
from antisd_jax.errors import UserError
from antisd_jax.files import read_jsonl
from antisd_jax.results import Curve, pass_curve, table

IGNORED = (*FREE, "seed", "init.run")  # init.run is told by itself
DRAWS = 1000  # of a bootstrap


@dataclass
class Run:
    """A run folder's files, read."""

    name: str
    config: dict  # dotted key → value
    rows: list[dict]  # of metrics.jsonl
    solved: dict[int, dict[str, dict[int, np.ndarray]]] = field(default_factory=dict)  # step → benchmark → problem → [k] correct


@dataclass
class Group:
    """Runs that differ in their seed alone."""

    name: str
    runs: list[Run]

    def column(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, mean over the runs that have the key at that step)."""
        values: dict[int, list[float]] = {}
        for run in self.runs:
            for row in run.rows:
                if key in row:
                    values.setdefault(row["step"], []).append(row[key])
        steps = sorted(values)
        return np.array(steps), np.array([np.mean(values[s]) for s in steps])

    def steps(self) -> list[int]:
        """At which every run was evaluated."""
        common = set.intersection(*({row["step"] for row in run.rows if "eval/average" in row} for run in self.runs))
        return sorted(common)

    def curve(self) -> Curve:
        """Of each benchmark the mean over seeds."""
        out: dict[int, dict[str, float]] = {}
        for step in self.steps():
            found: dict[str, list[float]] = {}
            for run in self.runs:
                row = next(r for r in run.rows if r["step"] == step and "eval/average" in r)
                for key, value in row.items():
                    if "/avg@" in key and not key.endswith(("_low", "_high")):
                        found.setdefault(key.split("/")[1], []).append(value)
            out[step] = {name: float(np.mean(values)) for name, values in found.items()}
        return Curve(self.name, out)

    def interval(self, step: int) -> tuple[float, float] | None:
        """95 % of the Average, by resampling seeds and problems; None where the generations of that step are not at hand."""
        if not all(step in run.solved for run in self.runs):
            return None
        names = list(self.runs[0].solved[step])
        shares = [np.array([[x.mean() for _, x in sorted(run.solved[step][name].items())] for run in self.runs]) for name in names]
        return hierarchical(shares)

    def passes(self, step: int) -> dict[str, np.ndarray]:
        """Of each benchmark pass@1 … pass@k, the unbiased estimator, mean over problems and seeds."""
        out: dict[str, list[np.ndarray]] = {}
        for run in self.runs:
            for name, problems in run.solved.get(step, {}).items():
                k = min(len(x) for x in problems.values())
                out.setdefault(name, []).append(pass_curve(k, np.array([x[:k].sum() for x in problems.values()])))
        return {name: np.mean(values, axis=0) for name, values in out.items()}


def hierarchical(shares: list[np.ndarray]) -> tuple[float, float]:
    """95 % interval of the unweighted mean over benchmarks of mean shares [S P]: seeds are drawn with replacement, then problems, the same
    ones for all seeds. The generator's seed is fixed."""
    rng = np.random.default_rng(0)
    count = shares[0].shape[0]
    means = np.zeros(DRAWS)
    for draw in range(DRAWS):
        seeds = rng.integers(count, size=count)
        means[draw] = np.mean([x[seeds][:, rng.integers(x.shape[1], size=x.shape[1])].mean() for x in shares])
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def read_run(folder: Path) -> Run:
    """Raises UserError when it is not a run folder."""
    import yaml

    rows = read_jsonl(folder / "metrics.jsonl")
    if not rows:
        raise UserError(f"{folder} has no metrics.jsonl with complete rows: not a run folder, or nothing has been logged yet")
    config = _flat(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    solved: dict = {}
    for row in read_jsonl(folder / "evaluations.jsonl"):
        problems = solved.setdefault(row["step"], {}).setdefault(row["benchmark"], {})
        problems.setdefault(row["index"], []).append((row["sample"], row["outcome"] == "correct"))
    for benchmarks in solved.values():
        for problems in benchmarks.values():
            for index, pairs in problems.items():
                problems[index] = np.array([right for _, right in sorted(pairs)], float)
    return Run(folder.name, config, rows, solved)


def _flat(values: dict, path: str = "") -> dict:
    out = {}
    for key, value in values.items():
        out |= _flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return out


def grouped(runs: list[Run]) -> list[Group]:
    """Groups in the order of their first runs, named by what tells them apart."""
    together: dict[str, list[Run]] = {}
    for run in runs:
        parent = re.sub(r"seed-?\d+", "seed", str(run.config.get("init.run", "")))  # continuations of one method's seeds belong together
        key = json.dumps([parent, {k: v for k, v in run.config.items() if not k.startswith(IGNORED)}], sort_keys=True)
        while any(r.config.get("seed") == run.config.get("seed") for r in together.get(key, [])):
            key += "again"  # the same seed once more is no other seed: it stands alone
        together.setdefault(key, []).append(run)
    firsts = [members[0].config for members in together.values()]
    groups = [Group(_name(members, firsts), members) for members in together.values()]
    names = [g.name for g in groups]
    for g in groups:  # names that do not tell them apart give way to those of folders
        if names.count(g.name) > 1:
            g.name = g.runs[0].name
    taken: Counter[str] = Counter()
    for g in groups:
        taken[g.name] += 1
        g.name += f" ({taken[g.name]})" if taken[g.name] > 1 else ""
    return groups


def _name(members: list[Run], firsts: list[dict]) -> str:
    """method.name, and what else differs among the groups of that method."""
    mine = members[0].config
    alike = [c for c in firsts if c.get("method.name") == mine.get("method.name")]
    keys = [k for k in mine if not k.startswith(IGNORED) and len({json.dumps(c.get(k)) for c in alike}) > 1]
    return ", ".join([str(mine.get("method.name", members[0].name)), *(f"{k.rpartition('.')[2]} {_short(mine[k])}" for k in keys)])


def _short(value) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else Path(value).name if isinstance(value, str) else str(value)


def results_table(groups: list[Group]) -> list[list[str]]:
    """results.table of the groups' mean curves, with the number of seeds; runs without an evaluation are left out by the caller."""
    rows = table([g.curve() for g in groups])
    return [[*row[:1], "seeds" if i == 0 else str(len(groups[i - 1].runs)), *row[1:]] for i, row in enumerate(rows)]
