"""The clipped surrogate, with a denominator that is given and never computed here."""

import jax.numpy as jnp
import numpy as np

AGGREGATIONS = ("token_mean", "sequence_mean", "constant")


def row_weights(lengths: np.ndarray, counted: np.ndarray, aggregation: str, most: int) -> np.ndarray:
    """Weight of each response token of a row, for a whole update: lengths and counted (bool) [N] → [N] float64.

    token_mean: one over all counted tokens. sequence_mean: one over (counted rows · own length). constant: one over
    (counted rows · `most`), Dr.GRPO's. Rows that do not count weigh 0. Because the weights are made once for all rows, the
    gradient is the same for any split into micro-batches or devices.
    """
    lengths, counted = np.asarray(lengths, np.float64), np.asarray(counted, bool)
    rows = max(int(counted.sum()), 1)
    if aggregation == "token_mean":
        weights = np.full(lengths.shape, 1.0 / max(float(lengths[counted].sum()), 1.0))
    elif aggregation == "sequence_mean":
        weights = 1.0 / (rows * np.maximum(lengths, 1.0))
    else:
        weights = np.full(lengths.shape, 1.0 / (rows * most))
    return np.where(counted, weights, 0.0)


def clipped_surrogate(logp, old, advantage, token_weights, clip_low: float, clip_high: float):
    """(loss, clipped): −Σ w · min(ρ·A, clip(ρ, 1−clip_low, 1+clip_high)·A), with ρ = exp(logp − old).

    All arrays [N R]; token_weights is 0 outside the responses. Descending the loss ascends the advantage. `clipped` [N R]
    says where the clip took the gradient away. On the first update of a batch ρ = 1 and the gradient is −A ∇logp.
    """
    ratio = jnp.exp(jnp.where(token_weights > 0, logp - old, 0.0))
    plain, bounded = ratio * advantage, jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantage
    return -jnp.sum(token_weights * jnp.minimum(plain, bounded)), (bounded < plain) & (token_weights > 0)


NEGLIGIBLE = 0.01  # nats: rounding, not another policy


def importance_weight(logp, sampled, cap: float):
    """min(exp(logp − sampled), cap): how much more likely the trainer holds a token than the sampler that drew it, truncated.

    Multiplies the loss of a token where sampler and trainer are not one program. 1 where they differ by no more than NEGLIGIBLE.
    logp, sampled […], log-probs at one temperature; nothing is differentiated through it.
    """
    difference = logp - sampled
    return jnp.where(jnp.abs(difference) > NEGLIGIBLE, jnp.minimum(jnp.exp(difference), cap), 1.0)
