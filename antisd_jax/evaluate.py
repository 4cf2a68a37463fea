"""Evaluation: avg@k with an interval, maj@k, pass@k, and the share of responses cut off."""

from collections import Counter
from dataclasses import dataclass, field, replace

import jax
import numpy as np

from antisd_jax.model.sharding import rows_per_step
from antisd_jax.rewards.grade import Grade
from antisd_jax.rewards.math import plain
from antisd_jax.rewards.pool import Pool
from antisd_jax.rollout.sampling import Sampling
from antisd_jax.steps import Policy, judge, roll_out
from antisd_jax.text.data import DataConfig
from antisd_jax.text.rows import Problem


@dataclass(frozen=True)
class EvalConfig:
    """every: steps between evaluations (step 0 and the last step always), 0 none. samples: k, a problem.
    response: tokens at most, 0: as many as in training."""

    every: int = 10
    samples: int = 4
    response: int = 0
    data: DataConfig = field(default_factory=lambda: DataConfig("countdown:eval"))
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.7, top_p=0.95))


def pass_at_k(n: int, correct: np.ndarray, k: int) -> float:
    """Mean over problems of 1 − C(n−c, k)/C(n, k): the unbiased chance that k of n samples hold a correct one.

    correct [P]: c of each problem. The ratio of binomials is a product of n−c−i over n−i, so nothing overflows.
    """
    i = np.arange(k)
    missed = np.clip(n - np.asarray(correct)[:, None] - i, 0, None) / (n - i)
    return float(np.mean(1.0 - np.prod(missed, axis=1)))


def bootstrap(values: np.ndarray, draws: int = 1000) -> tuple[float, float]:
    """95 % interval of the mean over problems, values [P], by resampling them with a fixed seed."""
    rng = np.random.default_rng(0)
    means = np.asarray(values)[rng.integers(len(values), size=(draws, len(values)))].mean(axis=1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def majority(grades: list[Grade]) -> float:
    """1 when the answer that most samples of a problem give is correct; of equally many the one given first, 0 without answers.

    Answers are the same when their text is, layout aside; an answer that some graders missed counts as its first grade.
    """
    answers = [(plain(g.extracted), g) for g in grades if g.extracted is not None and g.outcome in ("correct", "wrong")]
    if not answers:
        return 0.0
    counts = Counter(text for text, _ in answers)
    best = max(counts, key=counts.get)
    return next(g.reward for text, g in answers if text == best)


def evaluate(policy: Policy, weights, problems: list[Problem], config: EvalConfig, key, pool: Pool, rows: int) -> tuple[dict, list[dict]]:
    """(metrics "eval/…" of k samples a problem, a row for every generation); `rows` sequences are sampled at a time."""
    k = config.samples
    policy = replace(policy, responses=config.response or policy.responses)
    ways = rows_per_step(policy.mesh)
    size = -(-max(1, rows // k) // ways) * ways
    correct, stopped, lengths, voted, generations = [], [], [], [], []
    for start in range(0, len(problems), size):
        part = problems[start : start + size]
        filled = part + [part[0]] * (size - len(part))  # one shape, hence one compiled program; the filling is dropped
        rollouts = jax.tree.map(lambda x, n=len(part): x[:n], roll_out(policy, weights, filled, k, key, config.sampling))
        said, grades, rewards = judge(policy, pool, part, rollouts)
        correct.append(rewards.sum(axis=1))
        stopped.append(rollouts.stopped)
        lengths.append(rollouts.lengths)
        voted += [majority(group) for group in grades]
        generations += [_row(p, j, said[i][j], grades[i][j], rollouts, i) for i, p in enumerate(part) for j in range(k)]
    correct = np.concatenate(correct)
    low, high = bootstrap(correct / k)
    metrics = {
        f"eval/avg@{k}": float(np.mean(correct / k)),
        f"eval/avg@{k}_low": low,
        f"eval/avg@{k}_high": high,
        f"eval/maj@{k}": float(np.mean(voted)),
        **{f"eval/pass@{j}": pass_at_k(k, correct, j) for j in sorted({2**i for i in range(1, k.bit_length())} | {k}) if j <= k},
        "eval/clip_ratio": float(1.0 - np.concatenate(stopped).mean()),
        "eval/response_length": float(np.concatenate(lengths).mean()),
        "eval/problems": len(problems),
    }
    return metrics, generations


def _row(problem: Problem, sample: int, said: str, grade: Grade, rollouts, i: int) -> dict:
    """One generation, as it is saved."""
    return {
        "id": problem.id,
        "sample": sample,
        "response": said,
        "extracted": grade.extracted,
        "outcome": grade.outcome,
        "gold": problem.answer,
        "finish_reason": "stop" if rollouts.stopped[i, sample] else "length",
        "response_tokens": int(rollouts.lengths[i, sample]),
    }
