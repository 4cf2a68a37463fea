"""PURE: the results table of several runs, with Average@step and the speed-up over a reference run (method.md, section 4)."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Curve:
    """A run's evaluations: step → {benchmark: accuracy}, every step with the same benchmarks."""

    name: str
    steps: dict[int, dict[str, float]]

    def average(self, step: int) -> float:
        """The unweighted mean over benchmarks."""
        return sum(self.steps[step].values()) / len(self.steps[step])

    @property
    def best(self) -> int:
        """The first step of the highest Average."""
        return max(self.steps, key=lambda step: (self.average(step), -step))

    @property
    def last(self) -> int:
        return max(self.steps)


def curve(name: str, rows: list[dict]) -> Curve:
    """From rows of metrics.jsonl ("eval/BENCHMARK/avg@k") that hold an evaluation."""
    steps = {}
    for row in rows:
        found = {key.split("/")[1]: value for key, value in row.items() if "/avg@" in key and not key.endswith(("_low", "_high"))}
        if found:
            steps[row["step"]] = found
    return Curve(name, steps)


def speed_up(run: Curve, reference: Curve) -> float | None:
    """(the reference's best step) ÷ (first step at which the run's Average reaches the reference's best); None: it never does.

    Infinite when the run begins there.
    """
    goal = reference.average(reference.best)
    first = min((step for step in run.steps if run.average(step) >= goal), default=None)
    if first is None:
        return None
    return reference.best / first if first else float("inf")


def pass_values(n: int, correct: np.ndarray, k: int) -> np.ndarray:
    """[P] 1 − C(n−c, k)/C(n, k): the unbiased chance that k of n samples hold a correct one.

    correct [P]: c of each problem. The ratio of binomials is a product of n−c−i over n−i, so nothing overflows.
    """
    i = np.arange(k)
    missed = np.clip(n - np.asarray(correct)[:, None] - i, 0, None) / (n - i)
    return 1.0 - np.prod(missed, axis=1)


def pass_curve(n: int, correct: np.ndarray) -> np.ndarray:
    """[n] pass@1 … pass@n, each the mean over problems of `pass_values`."""
    return np.array([pass_values(n, correct, k).mean() for k in range(1, n + 1)])


def table(curves: list[Curve], references: list[Curve] | None = None) -> list[list[str]]:
    """Rows of text, the head first: a run, its benchmarks in per cent at its best step, Average@best, Average@last, and the speed-up
    over its reference, the first run unless `references` has one for each."""
    names = list(dict.fromkeys(name for c in curves for step in c.steps.values() for name in step))
    out = [["run", *names, "Average@best", "Average@last", "speed-up"]]
    for c, reference in zip(curves, references or [curves[0]] * len(curves)):
        at = c.steps[c.best]
        fast = speed_up(c, reference)
        marks = [f"{100 * at[name]:.1f}" if name in at else "–" for name in names]
        averages = [f"{100 * c.average(step):.1f} @{step}" for step in (c.best, c.last)]
        out.append([c.name, *marks, *averages, "never" if fast is None else f"{fast:.2f}×"])
    return out


def markdown(rows: list[list[str]]) -> str:
    """The same as a Markdown table."""
    head, *body = rows
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
