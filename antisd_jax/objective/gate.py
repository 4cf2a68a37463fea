"""The entropy gate: a Schmitt trigger on a statistic of the teacher's distribution."""

from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from antisd_jax.errors import UserError

STATISTICS = ("none", "token_mean", "token_median", "teacher_perplexity", "student_perplexity")


class GateCannotArm(UserError):
    """The warm-up level of the statistic is too low to steer by."""


@dataclass(frozen=True)
class Gate:
    """statistic "none" is a gate that is open from the first step. down and up are fractions of the warm-up median.

    floor: the least warm-up level of an entropy statistic, in nats, at which the gate still arms. high, back: fractions of H_warm, too: it also
    closes above `high`, and opens again at `back` or below; high = 0 has no such band. least: τ_down is at least this. lagged: the
    statistic of the step before decides. adaptive: of each response, instead of one λ for all,
    λ_i = clip(adaptive · log(clip(ppl_i / τ_down, 0.5, 3)), 0, λ_max), and 0 where its teacher's perplexity ppl_i is above 3.
    """

    statistic: str = "token_mean"  # token_mean, token_median (nats), teacher_perplexity, student_perplexity, or none
    warmup: int = 5  # steps with λ = 0 whose median is the level H_warm; the paper's 5
    down: float = 0.93  # an open gate closes below this share of H_warm; the paper's 0.93
    up: float = 1.0  # a closed one opens from this share of H_warm on; the paper's 1.00
    floor: float = 1e-3
    high: float = 0.0
    back: float = 0.0
    least: float = 0.0
    lagged: bool = False
    adaptive: float = 0.0


@dataclass(frozen=True)
class GateState:
    """records: the statistic at each warm-up step. level: H_warm, their median, None during warm-up. open: g. last: H of the step before.
    moments: (number, sum, sum of squares) of u over warm-up, where the term asks for it."""

    records: tuple[float, ...] = ()
    level: float | None = None
    open: bool = True
    last: float | None = None
    moments: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @classmethod
    def of(cls, record: dict) -> "GateState":
        """From what `asdict` gave, read back from JSON."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in record.items()})

    @property
    def deviation(self) -> float:
        """Of u over warm-up; infinite before there is any."""
        n, total, squares = self.moments
        return float(np.sqrt(max(squares / n - (total / n) ** 2, 0.0))) if n else float("inf")


def statistic(kind: str, student, teacher, lengths, scored) -> float:
    """H of one step's batch, from Scores [N R] of student and teacher and response lengths [N] (numpy, float64 inside).

    token_mean and token_median: of the teacher's full-vocabulary entropy, nats. …_perplexity: exp(−mean log-prob) of the
    sampled tokens. A teacher's statistic counts the rows that met a privileged context, as `scored` [N] says: elsewhere
    there is no teacher to measure. NaN when there is no token to measure, or the statistic is "none".
    """
    if kind == "none":
        return float("nan")
    scores = student if kind == "student_perplexity" else teacher
    mask = np.arange(scores.logprobs.shape[1]) < np.asarray(lengths)[:, None]
    if kind != "student_perplexity":
        mask &= np.asarray(scored)[:, None]
    if not mask.any():
        return float("nan")
    if kind == "token_mean":
        return float(np.mean(scores.entropies[mask], dtype=np.float64))
    if kind == "token_median":
        return float(np.median(scores.entropies[mask]))
    return float(np.exp(-np.mean(scores.logprobs[mask], dtype=np.float64)))


def step(gate: Gate, state: GateState, h: float) -> tuple[GateState, float]:
    """One step of the trigger: (state, H of this batch) → (new state, g), with λ = g · λ_max.

    The first `warmup` steps record H and give g = 0. After them: open and H < down·H_warm closes; closed and H ≥ up·H_warm
    opens; otherwise the state stays. Evaluated on the current batch, before its update; nothing is smoothed. A batch
    without a measurement (H is NaN) leaves the state as it is. Raises GateCannotArm when H_warm is below the floor.
    """
    if gate.statistic == "none":
        return state, 1.0
    if np.isnan(h):
        return state, 0.0 if state.level is None else float(state.open)
    if len(state.records) < gate.warmup:
        return replace(state, records=(*state.records, h), last=h), 0.0
    level = state.level
    if level is None:
        level = median(state.records) if state.records else h
        if gate.statistic.startswith("token") and level < gate.floor:
            raise GateCannotArm(
                f"method.gate: {gate.statistic} over warm-up is {level:.2e} nats, below the floor {gate.floor:.2e}: it cannot steer. Choose another statistic"
            )
    seen = state.last if gate.lagged and state.last is not None else h
    if state.open:
        opened = seen >= lower(gate, level) and not (gate.high and seen > gate.high * level)
    else:
        opened = seen >= gate.up * level and not (gate.high and seen > gate.back * level)
    return replace(state, level=level, open=opened, last=h), float(opened)


def lower(gate: Gate, level: float) -> float:
    """τ_down."""
    return max(gate.down * level, gate.least)


def remember(state: GateState, u: np.ndarray) -> GateState:
    """The state with the u of one more batch in its moments, during warm-up."""
    if state.level is not None:
        return state
    n, total, squares = state.moments
    u = np.asarray(u, np.float64)
    return replace(state, moments=(n + u.size, total + float(u.sum()), squares + float((u**2).sum())))


def strengths(gate: Gate, state: GateState, teacher, lengths: np.ndarray, lam_max: float) -> np.ndarray:
    """λ_i / λ_max [N] of each response, in an adaptive gate; else 1. teacher: Scores [N R]."""
    if not gate.adaptive or state.level is None:
        return np.ones(len(lengths))
    mask = np.arange(teacher.logprobs.shape[1]) < lengths[:, None]
    perplexity = np.exp(-np.where(mask, teacher.logprobs, 0.0).sum(axis=1, dtype=np.float64) / np.maximum(lengths, 1))
    lam = np.clip(gate.adaptive * np.log(np.clip(perplexity / lower(gate, state.level), 0.5, 3.0)), 0.0, lam_max)
    return np.where(perplexity > 3.0, 0.0, lam) / lam_max
