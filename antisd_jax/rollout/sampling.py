"""Choosing the next token from logits."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; top_p 1, top_k 0 and min_p 0 are off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


def sample_token(key, logits, s: Sampling):
    """One token for one sample: logits [V] float32 → (id, log-prob under the untruncated distribution at temperature).

    Gumbel-max, so the draw depends on the key and the logits alone. At T = 1 without truncation nothing is sorted.
    Greedy decoding reports the log-prob at temperature 1.
    """
    logits = logits / (s.temperature or 1.0)
    logp = jax.nn.log_softmax(logits)
    kept = truncate(logp, s)
    noise = jax.random.gumbel(key, logits.shape, jnp.float32) if s.temperature else 0.0
    token = jnp.argmax(kept + noise)
    return token.astype(jnp.int32), logp[token]


def truncate(logp, s: Sampling):
    """Log-probs [V] with the tokens outside top-k, top-p and min-p at −∞; the most likely token always stays."""
    kept = logp
    if s.top_k or s.top_p < 1.0:
        ordered = jnp.sort(logp)[::-1]
        if s.top_k:
            kept = jnp.where(logp >= ordered[min(s.top_k, logp.shape[0]) - 1], kept, -jnp.inf)
        if s.top_p < 1.0:
            before = jnp.cumsum(jnp.exp(ordered)) - jnp.exp(ordered)
            least = jnp.min(jnp.where(before < s.top_p, ordered, jnp.inf))
            kept = jnp.where(logp >= least, kept, -jnp.inf)
    if s.min_p:
        kept = jnp.where(logp >= jnp.max(logp) + jnp.log(s.min_p), kept, -jnp.inf)
    return kept
