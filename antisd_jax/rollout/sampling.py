"""Choosing the next token from logits."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; top_p 1, top_k 0 and min_p 0 are off."""

    temperature: float = 1.0  # of sampling and of every log-prob; 0 is greedy, in evaluation alone [–; paper]
    top_p: float = 1.0  # only the likeliest tokens that make up this share of the probability; 1 is off [share; paper]
    top_k: int = 0  # only so many of the likeliest tokens; 0 is off [tokens; ours]
    min_p: float = 0.0  # only tokens with at least this share of the likeliest one's probability; 0 is off [share; ours]


@dataclass(frozen=True)
class RolloutConfig:
    """How rollouts are made: none of it but `ahead` changes what is learned."""

    slots: int = 0  # samples in flight at a time; 0: all of a step's. The same tokens come out for any number [rollouts; ours]
    tolerance: float = 0.05  # mean |Δ log-prob| between sampler and scorer above which a run refuses to begin [nats; ours]
    compile_first: bool = False  # compile every program of training's rollouts before the first step, not when one needs it [–; ours]
    ahead: bool = False  # sample a step's rollouts before the update of the step before it (ahead.py) [–; ours]


def sample_token(key, logits, s: Sampling):
    """One token for one sample: logits [V] float32 → (id, log-prob under the untruncated distribution at temperature).

    One uniform number is looked up in the cumulated distribution, so the draw depends on the key and the logits alone, and noise
    is made once a token, not once a word of the vocabulary. At T = 1 without truncation nothing is sorted.
    Greedy decoding reports the log-prob at temperature 1.
    """
    logits = logits / (s.temperature or 1.0)
    logp = jax.nn.log_softmax(logits)
    if not s.temperature:
        token = jnp.argmax(logits)
    else:
        token = look_up(jnp.exp(truncate(logp, s)), jax.random.uniform(key))
    return token.astype(jnp.int32), logp[token]


BLOCK = 64


def look_up(weights, u):
    """The index at which the cumulated weights [V] pass the fraction u in [0, 1) of their sum; one of weight 0 never does.

    In two levels, blocks and places in a block: cumulating a whole vocabulary is slow, and rounds in its last digits.
    """
    blocks = jnp.pad(weights, (0, -len(weights) % BLOCK)).reshape(-1, BLOCK)
    sums = jnp.cumsum(blocks.sum(axis=1))
    target = u * sums[-1]
    block = _passed(sums, target)
    inside = jnp.cumsum(blocks[block])
    before = jnp.where(block > 0, sums[block - 1], 0.0)
    return block * BLOCK + _passed(inside, target - before)


def _passed(cumulated, target):
    """The first index whose cumulated weight is above the target; where rounding leaves none, the last that adds anything."""
    first = jnp.sum(cumulated <= target)
    last = jnp.argmax(cumulated == cumulated[-1])
    return jnp.minimum(first, last)


ROUNDING = 1e-4  # nats


def truncate(logp, s: Sampling):
    """Log-probs [V] with the tokens outside top-k, top-p and min-p at −∞; the most likely token always stays.

    A token as likely as the last one within ROUNDING stays with it: a compiler may compute log-probs twice, for sorting and for
    comparing, and round them differently; then an exact comparison would lose that last token, or the only one.
    """
    kept = logp
    if s.top_k or s.top_p < 1.0:
        ordered = jnp.sort(logp)[::-1]
        if s.top_k:
            kept = jnp.where(logp >= ordered[min(s.top_k, logp.shape[0]) - 1] - ROUNDING, kept, -jnp.inf)
        if s.top_p < 1.0:
            before = jnp.cumsum(jnp.exp(ordered)) - jnp.exp(ordered)
            least = jnp.min(jnp.where(before < s.top_p, ordered, jnp.inf))
            kept = jnp.where(logp >= least - ROUNDING, kept, -jnp.inf)
    if s.min_p:
        kept = jnp.where(logp >= jnp.max(logp) + jnp.log(s.min_p) - ROUNDING, kept, -jnp.inf)
    return kept
