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

    floor: the least warm-up level of an entropy statistic, in nats, at which the gate still arms.
    """

    statistic: str = "token_mean"
    warmup: int = 5
    down: float = 0.93
    up: float = 1.0
    floor: float = 1e-3


@dataclass(frozen=True)
class GateState:
    """records: the statistic at each warm-up step. level: H_warm, their median, None during warm-up. open: g."""

    records: tuple[float, ...] = ()
    level: float | None = None
    open: bool = True


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
        return replace(state, records=(*state.records, h)), 0.0
    level = state.level
    if level is None:
        level = median(state.records) if state.records else h
        if gate.statistic.startswith("token") and level < gate.floor:
            raise GateCannotArm(
                f"method.gate: {gate.statistic} over warm-up is {level:.2e} nats, below the floor {gate.floor:.2e}: it cannot steer. Choose another statistic"
            )
    opened = h >= gate.down * level if state.open else h >= gate.up * level
    return replace(state, level=level, open=opened), float(opened)
