"""Several runs side by side, without drawing: which belong together, curves with intervals over seeds and problems, tables."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from antisd_jax.config import FREE, Config, flatten, read_yaml
from antisd_jax.errors import UserError
from antisd_jax.files import read_jsonl
from antisd_jax.results import Curve, pass_curve, table

IGNORED = (*FREE, "seed", "eval.every", "init.run")  # init.run is told by itself
SECTION = ("model.", "data.", "eval.data", "init.run", "prompt.thinking")  # curves of other models or problems are not drawn together
CREDIT = ("method.", "prompt.sources", "prompt.shuffled", "prompt.solution_tokens")  # what runs of one setting differ in
LAST = ("Average@best", "Average@last", "speed-up", "compared with", "difference")  # columns of a table, after the benchmarks
DEFAULTS = flatten(Config())
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
    """Runs that differ in their seed alone. section: what tells its model, data and start from those of other groups, "" where nothing does."""

    name: str
    runs: list[Run]
    section: str = ""

    @property
    def title(self) -> str:
        return f"{self.section}: {self.name}" if self.section else self.name

    def column(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, mean over the runs that have the key at that step), as far as all runs go."""
        values: dict[int, list[float]] = {}
        end = min(self.ends())
        for run in self.runs:
            for row in run.rows:
                if key in row and row["step"] <= end:
                    values.setdefault(row["step"], []).append(row[key])
        steps = sorted(values)
        return np.array(steps), np.array([np.mean(values[s]) for s in steps])

    def ends(self) -> list[int]:
        """The last step of each run."""
        return [run.rows[-1]["step"] for run in self.runs]

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

    def shares(self, step: int) -> list[np.ndarray] | None:
        """Of each benchmark, by name, the share of correct samples [S P] of every seed and problem; None where the generations of that step are
        not at hand, or the runs have other problems."""
        out = []
        for name, problems in sorted(self.runs[0].solved.get(step, {}).items()):
            rows = [run.solved.get(step, {}).get(name, {}) for run in self.runs]
            if any(row.keys() != problems.keys() for row in rows):
                return None
            out.append(np.array([[row[i].mean() for i in sorted(row)] for row in rows]))
        return out or None

    def interval(self, step: int) -> tuple[float, float] | None:
        """95 % of the Average, by resampling seeds and problems; None without `shares`."""
        shares = self.shares(step)
        return shares and hierarchical(shares)

    def difference(self, other: "Group") -> tuple[int, float, float, float] | None:
        """(the last step that both were evaluated at, the Average there minus the other's, and its 95 % interval), of the seeds that both have,
        on the same problems; None where there are none."""
        theirs = {run.config.get("seed"): run for run in other.runs}
        pairs = [(run, theirs[seed]) for run in self.runs if (seed := run.config.get("seed")) in theirs]
        mine, others = (Group("", list(side)) for side in zip(*pairs)) if pairs else (None, None)
        if not pairs or not (steps := set(mine.steps()) & set(others.steps())):
            return None
        a, b = mine.shares(max(steps)), others.shares(max(steps))
        if not a or not b or [x.shape for x in a] != [x.shape for x in b]:
            return None
        gaps = [x - y for x, y in zip(a, b)]
        return max(steps), float(np.mean([x.mean() for x in gaps])), *hierarchical(gaps)

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
    """Raises UserError when it is not a run folder, or its config.yaml is not one."""
    rows = read_jsonl(folder / "metrics.jsonl")
    if not rows:
        raise UserError(f"{folder} has no metrics.jsonl with complete rows: not a run folder, or nothing has been logged yet")
    config = _flat(read_yaml(folder / "config.yaml"))
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


def comparable(run: Run) -> dict:
    """The keys that decide what a run's numbers are compared with. Continuations of one method's seeds belong together."""
    parent = re.sub(r"seed-?\d+", "seed", str(run.config.get("init.run", "")))
    return {k: v for k, v in run.config.items() if not k.startswith(IGNORED)} | {"init.run": parent}


def part(config: dict, keys: tuple[str, ...] = ("",), within: bool = True) -> str:
    """What the keys that begin so, or all others, are, in one text."""
    return json.dumps({k: v for k, v in config.items() if k.startswith(keys) == within}, sort_keys=True)


def grouped(runs: list[Run]) -> list[Group]:
    """Groups in the order of their first runs, those of one section together, named by what tells them apart."""
    together: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        config = comparable(run)
        section, key = together.setdefault(part(config, SECTION), {}), part(config)
        while any(r.config.get("seed") == run.config.get("seed") for r in section.get(key, [])):
            key += "again"  # the same seed once more is no other seed: it stands alone
        section.setdefault(key, []).append(run)
    firsts = [comparable(next(iter(section.values()))[0]) for section in together.values()]
    keys = [k for k in sorted(firsts[0], key=lambda k: k != "model.path") if k.startswith(SECTION)]
    groups, titles = [], unlike([named(c, telling(firsts, keys)) for c in firsts], [""] * len(firsts))
    for title, section in zip(titles, together.values()):
        members = list(section.values())
        configs = [comparable(m[0]) for m in members]
        names = [_name(c, [x for x in configs if x.get("method.name") == c.get("method.name")]) for c in configs]
        names = unlike(names, [m[0].name for m in members])
        groups += [Group(name, m, title if len(together) > 1 else "") for name, m in zip(names, members)]
    return groups


def telling(configs: list[dict], keys: list[str]) -> list[str]:
    """The first keys that tell the configurations apart as well as all of them do."""
    out: list[str] = []
    for key in keys:
        kinds = [len({json.dumps([c.get(k) for k in some]) for c in configs}) for some in (out, [*out, key])]
        out += [key] if kinds[1] > kinds[0] else []
    return out


def named(config: dict, keys: list[str]) -> str:
    """The keys' values in words; of a list only what is not the default, which would be long."""
    keys = [k for k in keys if not isinstance(config.get(k), list) or tuple(config[k]) != DEFAULTS.get(k)]
    lasts = Counter(key.rpartition(".")[2] for key in keys)
    short = {key: key if lasts[last := key.rpartition(".")[2]] > 1 else last for key in keys}
    return ", ".join(_short(config.get(key)) if key == "model.path" else f"{short[key]} {_short(config.get(key))}" for key in keys)


def _name(config: dict, alike: list[dict]) -> str:
    """method.name, and what else tells it from the groups of that method."""
    keys = [k for k in config if k != "method.name"]
    return ", ".join(filter(None, [str(config.get("method.name", "run")), named(config, telling(alike, keys))]))


def unlike(names: list[str], folders: list[str]) -> list[str]:
    """Names that do not tell apart give way to those of folders, or get a number."""
    names = [folder or name if names.count(name) > 1 else name for name, folder in zip(names, folders)]
    return [f"{name} ({names[: i + 1].count(name)})" if name in names[:i] else name for i, name in enumerate(names)]


def _short(value) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else Path(value).name if isinstance(value, str) else str(value)


def reference(group: Group, section: list[Group]) -> Group | None:
    """What a group is compared with: the GRPO of its setting (λ_max = 0, all else but the credit alike); where the section has no GRPO at all, its
    first group."""
    plain = [g for g in section if comparable(g.runs[0]).get("method.lam_max") == 0]
    setting = part(comparable(group.runs[0]), CREDIT, within=False)
    mine = [g for g in plain if part(comparable(g.runs[0]), CREDIT, within=False) == setting]
    return mine[0] if mine else None if plain else section[0]


def results_table(section: list[Group]) -> list[list[str]]:
    """results.table of the groups' mean curves, with the number of seeds, what each is compared with, and the difference at the last step of both.
    The row "base" is the first group before training. Runs without an evaluation are left out by the caller."""
    first, others = section[0].curve(), [reference(g, section) for g in section]
    bases = [Curve("base", {0: first.steps[0]})] if 0 in first.steps else []
    head, *rows = table([*bases, *(g.curve() for g in section)], [*bases, *((other or g).curve() for g, other in zip(section, others))])
    out = [["run", "seeds", *head[1:-3], *LAST]]
    out += [["base", str(len(section[0].runs)), *row[1:-1], "–", "–", "–"] for row in rows[: len(bases)]]
    for row, g, other in zip(rows[len(bases) :], section, others):
        compared = [row[-1] if other else "–", other.name if other and other is not g else "–", "–"]
        if other and other is not g and (gap := g.difference(other)):
            compared[2] = "{1:+.1f} ({2:+.1f} … {3:+.1f}) @{0}".format(gap[0], *(100 * x for x in gap[1:]))
        out.append([g.name, str(len(g.runs)), *row[1:-1], *compared])
    return out
