"""Group advantage, the pointwise mutual information u, the shape φ, and the advantage that joins them.

Letters are the paper's (arXiv 2605.11609): s student and t teacher log-prob of the sampled token, u = t − s, λ the
strength of the per-token term. P problems, G samples a problem, N rollouts, R response tokens.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

LOG2 = 0.6931471805599453


@dataclass(frozen=True)
class Term:
    """A per-token term λ · sign · shape(u) · weight, of which every method is a value. `outlier` to `bound` act in this order.

    signal: "teacher" is u = t − s; "student" puts s itself in the place of u, "length" the response's length, normalised in its group
    as rewards are [–; paper].
    """

    sign: int = -1  # −1 rewards what the teacher suppresses (AntiSD), +1 what it boosts (self-distillation) [–; paper]
    shape: str = "jsd"  # "jsd" is φ(u), "linear" is u [–; paper]
    signal: str = "teacher"
    composition: str = "additive"  # "additive" has weight 1, "multiplicative" has weight A_seq [–; paper]
    outlier: float = 0.0  # |u| above so many deviations of u over the gate's warm-up counts as 0; 0 off, the released code's 2 [–; paper]
    clamp: float = 0.0  # |u| at most; 0 off, the released code's 5 [nats; paper]
    standardise: bool = False  # sign · shape(u) has mean 0 and deviation 1 over each response; the released code's true [–; paper]
    bound: float = 0.0  # |term| at most, in nats or in deviations (`standardise`); 0 off, the released code's 5 [–; paper]
    longest: int = 0  # a response of so many tokens or more has no term; 0 off, the released code's 12000 [tokens; paper]
    words: tuple[str, ...] = ()  # only tokens whose first word is one of these; none given: all tokens [–; ours]


def group_advantage(rewards: np.ndarray, normalise: bool = True) -> np.ndarray:
    """A_i^seq = (R_i − mean R) / std R within each group: rewards [P G] → [P G], float64.

    normalise=False leaves the division out (Dr.GRPO). The deviation is the population's. A group of equal rewards gives
    exactly 0, whatever the value: its deviation would be rounding noise.
    """
    rewards = np.asarray(rewards, np.float64)
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    constant = (rewards == rewards[:, :1]).all(axis=1, keepdims=True)
    deviation = rewards.std(axis=1, keepdims=True) if normalise else np.ones_like(centred[:, :1])
    return np.where(constant, 0.0, centred / np.where(constant, 1.0, deviation))


def phi(u):
    """φ(u) = ½ (softplus(u) − log 2): 0 at u = 0, bounded below by −½ log 2, rising like u/2.

    −φ(u) = f′(e^−u) for f(r) = ½ r log(2r/(1+r)) + ½ log(2/(1+r)): the policy gradient weighted by −φ(u) ascends the
    Jensen–Shannon divergence between student and teacher.
    """
    return 0.5 * (jax.nn.softplus(u) - LOG2)


def token_term(s, t, term: Term, mask=True, limit=jnp.inf):
    """The term before λ and weights: s, t [N R] → [N R]. mask [N R]: response tokens; limit: the largest |u| that is no outlier. A constant
    to the gradient. With signal "length" t holds the length in the place of u."""
    u = {"teacher": t - s, "student": s, "length": t}[term.signal]
    if term.outlier:
        u = jnp.where(jnp.abs(u) > limit, 0.0, u)
    if term.clamp:
        u = jnp.clip(u, -term.clamp, term.clamp)
    out = term.sign * (phi(u) if term.shape == "jsd" else u)
    if term.standardise:
        out = standardised(out, mask)
    if term.bound:
        out = jnp.clip(out, -term.bound, term.bound)
    return jax.lax.stop_gradient(out)


def standardised(x, mask):
    """x [N R] less its mean over the masked part of each row, over its deviation there; 0 in a row where all are equal."""
    count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    centred = jnp.where(mask, x - jnp.sum(jnp.where(mask, x, 0.0), axis=1, keepdims=True) / count, 0.0)
    deviation = jnp.sqrt(jnp.sum(centred**2, axis=1, keepdims=True) / count)
    return jnp.where(deviation > 1e-6, centred / jnp.maximum(deviation, 1e-6), 0.0)


def token_advantage(sequence_advantage, s, t, weights, lam, term: Term, mask=True, limit=jnp.inf):
    """A_{i,t} = A_i^seq + λ · sign · shape(u_{i,t}) · weight_{i,t}: A_seq [N], s and t [N R], weights [N R] or [N 1] → [N R].

    weights is 1 where the term acts and 0 where it does not, above all where the rollout has no usable privileged context (none fits, or it
    says nothing more than the student's prompt): there u is 0 by definition. λ = 0 gives A_seq, bit for bit. mask, limit: see token_term.
    """
    sequence = sequence_advantage[:, None]
    composed = sequence if term.composition == "multiplicative" else jnp.ones_like(sequence)
    added = jnp.where(weights > 0, token_term(s, t, term, mask, limit) * composed * weights, 0.0)
    return sequence + lam * added


def term_signal(term: Term, teacher, lengths: np.ndarray, size: int) -> np.ndarray:
    """What stands in the place of t [N R]: the teacher's log-probs, or nothing, or of each row the length, normalised in its group [P G]."""
    if term.signal == "length":
        return np.repeat(group_advantage(lengths).reshape(-1, 1), size, axis=1)
    return np.zeros((lengths.size, size)) if teacher is None else teacher.logprobs
