"""Evaluation: avg@k with an interval, maj@k, pass@k, and the share of responses cut off, for several benchmarks.

Rows are made by `generate_rows`, one for every generation, and everything else is read from them: in training, in
`antisd evaluate`, and when one of its runs is continued.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from antisd_jax.errors import UserError
from antisd_jax.model.sharding import rows_per_step
from antisd_jax.results import pass_values
from antisd_jax.rewards.grade import Grade
from antisd_jax.rewards.math import plain
from antisd_jax.rewards.pool import Pool
from antisd_jax.rollout.sampling import Sampling
from antisd_jax.steps import Grading, Policy, roll_out
from antisd_jax.text.data import Benchmark, benchmark
from antisd_jax.text.rows import Problem

WAVES = 4  # slotfuls of samples that are generated before any of them are graded and written down
DRAWS = 1000  # of a bootstrap


@dataclass(frozen=True)
class EvalConfig:
    """When, on what and how long the policy is evaluated; its `sampling` has defaults of its own."""

    every: int = 10  # from one evaluation to the next (step 0 and the last step always have one), 0 none [steps; paper]
    data: tuple[str, ...] = ("countdown:eval",)  # the benchmarks, "NAME" or "NAME@k" [–; ours]
    samples: int = 4  # k of a benchmark that names none, the samples of each problem; the paper's 32, on MinervaMath 4 [rollouts; ours]
    limit: int = 0  # only the first problems of each benchmark, 0 all [problems; ours]
    response: int = 0  # the longest response, 0: as in training [tokens; ours]
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.7, top_p=0.95))

    def benchmarks(self) -> list[Benchmark]:
        """Raises UserError when two of them have one name."""
        found = [benchmark(spec, self.samples, self.limit) for spec in self.data]
        twice = [name for name, n in Counter(b.name for b in found).items() if n > 1]
        if twice:
            raise UserError(f"eval.data: two benchmarks are called {twice[0]!r}")
        return found


@dataclass(frozen=True)
class Result:
    """What one benchmark gave. samples: k. For each of P problems: its id, its correct samples, whether the majority is right."""

    name: str
    samples: int
    ids: list[str]
    correct: np.ndarray  # [P]
    voted: np.ndarray | None  # [P]; None for programs, whose texts are never the same
    clip_ratio: float
    response_length: float
    cases: float | None = None  # mean share of test cases passed, of programs

    @property
    def average(self) -> float:
        return float(self.correct.mean() / self.samples)


def pass_at_k(n: int, correct: np.ndarray, k: int) -> float:
    """Mean over problems of `pass_values`."""
    return float(np.mean(pass_values(n, correct, k)))


def bootstrap(*groups: np.ndarray) -> tuple[float, float]:
    """95 % interval of the unweighted mean of the groups' means, values [P] each, by resampling the problems within each group.

    The seed is fixed: the same values give the same interval.
    """
    rng = np.random.default_rng(0)
    means = [np.asarray(v)[rng.integers(len(v), size=(DRAWS, len(v)))].mean(axis=1) for v in groups]
    low, high = np.quantile(np.mean(means, axis=0), (0.025, 0.975))
    return float(low), float(high)


def majority(grades: list[Grade]) -> float:
    """1 when the answer that most samples of a problem give is correct; of equally many the one given first, 0 without answers.

    Answers are the same when their text is, layout aside; an answer that some graders missed counts as its first grade.
    """
    answers = [(plain(g.extracted), g) for g in grades if g.extracted is not None and g.outcome in ("correct", "wrong")]
    if not answers:
        return 0.0
    counts = Counter(text for text, _ in answers)
    best = max(counts, key=counts.get)
    return next(float(g.correct) for text, g in answers if text == best)


def generate_rows(policy: Policy, weights, problems: list[Problem], k: int, config: EvalConfig, key, pool: Pool, rows: int) -> Iterator:
    """A row for every generation, k a problem, a list of them at a time; `rows` sequences are in flight together.

    A row depends on its problem and its number alone: problems can be done in any order, and in parts.
    """
    ways = rows_per_step(policy.mesh)
    policy = replace(policy, responses=config.response or policy.responses, slots=-(-max(rows, k) // ways) * ways)
    size = max(1, WAVES * policy.slots // k)
    for start in range(0, len(problems), size):
        part = problems[start : start + size]
        grading = Grading(policy, pool, part, k)
        rollouts, _ = roll_out(policy, weights, part, k, key, config.sampling, grading.ended)
        said, grades, _ = grading.verdicts()
        yield [_row(p, j, said[i][j], grades[i][j], rollouts, i) for i, p in enumerate(part) for j in range(k)]


def _row(problem: Problem, sample: int, said: str, grade: Grade, rollouts, i: int) -> dict:
    """One generation, as it is saved."""
    out = {
        "id": problem.id,
        "index": problem.index,
        "sample": sample,
        "response": said,
        "extracted": grade.extracted,
        "outcome": grade.outcome,
        "gold": problem.gold,
        "finish_reason": "stop" if rollouts.stopped[i, sample] else "length",
        "response_tokens": int(rollouts.lengths[i, sample]),
    }
    return out | ({"passed": grade.cases[0], "cases": grade.cases[1]} if grade.cases else {})


def summarise(name: str, k: int, rows: list[dict]) -> Result:
    """The result of a benchmark from its rows, k of each problem, in whatever order."""
    groups: dict[int, list[dict]] = {}
    for row in sorted(rows, key=lambda r: (r["index"], r["sample"])):
        groups.setdefault(row["index"], []).append(row)
    programs = any("cases" in r for r in rows)
    voted = [majority([Grade(r["outcome"], r["extracted"]) for r in group]) for group in groups.values()]
    return Result(
        name=name,
        samples=k,
        ids=[group[0]["id"] for group in groups.values()],
        correct=np.array([sum(r["outcome"] == "correct" for r in group) for group in groups.values()]),
        voted=None if programs else np.array(voted),
        clip_ratio=float(np.mean([r["finish_reason"] == "length" for r in rows])),
        response_length=float(np.mean([r["response_tokens"] for r in rows])),
        cases=float(np.mean([r["passed"] / r["cases"] for r in rows])) if programs else None,
    )


def powers(k: int) -> list[int]:
    """1, 2, 4, … and k."""
    return sorted({2**i for i in range(k.bit_length())} | {k})


def metrics(results: list[Result]) -> dict:
    """ "eval/…" of a step: eval/average, the unweighted mean over benchmarks of avg@k, and eval/NAME/… of each benchmark."""
    low, high = bootstrap(*[r.correct / r.samples for r in results])
    out = {"eval/average": float(np.mean([r.average for r in results])), "eval/average_low": low, "eval/average_high": high}
    for r in results:
        k = r.samples
        low, high = bootstrap(r.correct / k)
        values = {f"avg@{k}": r.average, f"avg@{k}_low": low, f"avg@{k}_high": high}
        values |= {} if r.voted is None else {f"maj@{k}": float(r.voted.mean())}
        values |= {f"pass@{j}": pass_at_k(k, r.correct, j) for j in powers(k)}
        values |= {} if r.cases is None else {"cases": r.cases}
        values |= {"clip_ratio": r.clip_ratio, "response_length": r.response_length, "problems": len(r.ids)}
        out |= {f"eval/{r.name}/{key}": value for key, value in values.items()}
    return out
