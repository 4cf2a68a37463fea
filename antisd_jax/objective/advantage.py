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
    """A per-token term λ · sign · shape(u) · weight, of which every method is a value.

    sign: −1 rewards what the teacher suppresses (AntiSD), +1 what it boosts (self-distillation).
    shape: "jsd" is φ(u), "linear" is u. signal: "teacher" is u = t − s; "student" puts s itself in the place of u.
    composition: "additive" has weight 1, "multiplicative" has weight A_seq.
    """

    sign: int = -1
    shape: str = "jsd"
    signal: str = "teacher"
    composition: str = "additive"


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


def token_term(s, t, term: Term):
    """sign · shape(u), the term before λ: s, t [… R] → [… R]. A constant to the gradient."""
    u = s if term.signal == "student" else t - s
    shaped = phi(u) if term.shape == "jsd" else u
    return jax.lax.stop_gradient(term.sign * shaped)


def token_advantage(sequence_advantage, s, t, acts, lam, term: Term):
    """A_{i,t} = A_i^seq + λ · sign · shape(u_{i,t}) · weight_i: A_seq and acts [N], s and t [N R] → [N R].

    acts is 1 where the term acts and 0 where the rollout has no usable privileged context (none fits, or it says nothing
    more than the student's prompt): there u is 0 by definition. λ = 0 gives A_seq, bit for bit.
    """
    sequence = sequence_advantage[:, None]
    weight = sequence if term.composition == "multiplicative" else jnp.ones_like(sequence)
    added = jnp.where(acts[:, None] > 0, token_term(s, t, term) * weight, 0.0)
    return sequence + lam * added
