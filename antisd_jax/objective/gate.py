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
    """A trigger on a statistic H of each step, against its level H_warm over the warm-up.

    statistic: what H is: token_mean or token_median of the teacher's entropies (nats), teacher_perplexity, student_perplexity; "none" is
    a gate that is open from the first step. The paper says median, and plots the levels of a mean [–; ours].
    adaptive: 0 is one λ for all; else each response has its own, λ_i = clip(adaptive · log(clip(ppl_i / τ_down, 0.5, 3)), 0, λ_max), and
    0 where its teacher's perplexity ppl_i is above 3; the released code's 0.2 [–; paper].
    """

    statistic: str = "token_mean"
    warmup: int = 5  # first steps, with λ = 0; the median of their H is the level H_warm [steps; paper]
    down: float = 0.93  # an open gate closes below τ_down, this multiple of H_warm [multiple; paper]
    up: float = 1.0  # a closed gate opens from this multiple of H_warm on; the released code's 1.07 [multiple; paper]
    floor: float = 1e-3  # the least H_warm of an entropy statistic at which the gate still arms [nats; ours]
    high: float = 0.0  # an open gate also closes above this multiple of H_warm; 0: no such upper threshold [multiple; ours]
    back: float = 0.0  # with `high`, a closed gate opens only at this multiple of H_warm or below [multiple; ours]
    least: float = 0.0  # τ_down is at least this, in the statistic's own unit; the released code's 1.01 [–; paper]
    lagged: bool = False  # the statistic of the step before decides, not this step's; the released code's true [–; paper]
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
