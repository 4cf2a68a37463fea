"""Log-prob and entropy of given tokens, over blocks of the vocabulary: all tokens by all words never exist, forward or backward.

Blocks are of words, not of tokens, because of what moves: every block of the table is gathered once, and its gradient is written and
scattered once, whatever the number of tokens. Each device of the tensor axis takes the blocks of its own words and keeps its own sums,
which meet after the last block.

Shape letters: B rows, R tokens of a row, N = B · R, D width, V vocabulary, S devices along the tensor axis.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from antisd_jax.arrays import check_shapes
from antisd_jax.model.sharding import constrain, current_mesh, rows_per_step

LOGITS = 2**26  # entries of a device's logits that exist at one time
NEVER = -1e30  # the logit of what is no word


def token_logprobs(hidden, table, targets, temperature, entries: int = LOGITS):
    """Log-prob of each target token, and the entropy of its whole distribution, at a sampling temperature.

    hidden [B R D], table [V D], targets [B R] → (log-prob [B R], entropy [B R]), both float32, in nats. About `entries` logits exist
    at one time on a device, and not fewer than 128 a token; they and the gradients are summed in float32. The entropy is a statistic:
    no gradient flows through it.
    """
    size = check_shapes(hidden=("B R D", hidden), table=("V D", table), targets=("B R", targets))
    flat = hidden.reshape(-1, size["D"]), table, targets.reshape(-1)
    return tuple(x.reshape(targets.shape) for x in _blockwise(*flat, temperature, entries))


@dataclass(frozen=True)
class _Blocks:
    """The table as [S, words, D]: each device's words, `width` at a time. The last block begins early enough to be whole."""

    shards: int
    words: int
    width: int

    @property
    def count(self) -> int:
        return -(-self.words // self.width)

    def start(self, j):
        return jnp.minimum(j * self.width, self.words - self.width)

    def logits(self, hidden, table, temperature, j):
        """(logits [N S width], their block of the table [S width D], its word numbers [S width], −1 where an earlier block had them)."""
        block = jax.lax.dynamic_slice_in_dim(table, self.start(j), self.width, axis=1)
        block = constrain(block.astype(hidden.dtype), "vocab", None, None)
        own = self.start(j) + jnp.arange(self.width)
        numbers = jnp.where(own >= j * self.width, own + self.words * jnp.arange(self.shards)[:, None], -1)
        logits = jnp.einsum("nd,swd->nsw", hidden, block, preferred_element_type=jnp.float32) / temperature
        return constrain(jnp.where(numbers < 0, NEVER, logits), "rows", "vocab", None), block, numbers


def _divided(hidden, table, entries: int):
    """(hidden [N D], whole on each device of the tensor axis; table [S V/S D]; its blocks)."""
    mesh = current_mesh()
    shards = mesh.shape["tensor"] if mesh else 1
    words, tokens = table.shape[0] // shards, -(-hidden.shape[0] // rows_per_step(mesh))
    count = -(-words * tokens // entries)
    width = min(-(-words // (count * 128)) * 128, words)
    table = constrain(table.reshape(shards, words, -1), "vocab", None, "width")
    return constrain(hidden, "rows", None), table, _Blocks(shards, words, width)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _blockwise(hidden, table, targets, temperature, entries):
    return _forward(hidden, table, targets, temperature, entries)[0]


def _forward(hidden, table, targets, temperature, entries):
    """Sums of exponentials relative to the largest logit so far, as they grow from block to block."""
    x, words, blocks = _divided(hidden, table, entries)

    def add(sums, j):
        logits, _, numbers = blocks.logits(x, words, temperature, j)
        top, total, weighted, chosen = sums
        higher = jnp.maximum(top, logits.max(-1))
        relative = logits - higher[..., None]
        e, less = jnp.exp(relative), jnp.exp(top - higher)
        weighted = less * (weighted + total * (top - higher)) + (e * relative).sum(-1)
        chosen += jnp.where(numbers == targets[:, None, None], logits, 0.0).sum(-1)
        return (higher, less * total + e.sum(-1), weighted, chosen), None

    zeros = jnp.zeros((x.shape[0], blocks.shards), jnp.float32)
    sums = (zeros + NEVER, zeros, zeros, zeros)
    (top, total, weighted, chosen), _ = jax.lax.scan(add, sums, jnp.arange(blocks.count))
    highest = top.max(-1, keepdims=True)
    less = jnp.exp(top - highest)
    whole = (less * total).sum(-1)
    log_whole = jnp.log(whole)
    entropy = log_whole - (less * (weighted + total * (top - highest))).sum(-1) / whole
    log_z = highest[:, 0] + log_whole
    return (chosen.sum(-1) - log_z, entropy), (hidden, table, targets, temperature, log_z)


def _backward(entries, kept, cotangents):
    """Blocks once more: of log p_y, the gradient of logit w is 1[w = y] − p_w."""
    hidden, table, targets, temperature, log_z = kept
    x, words, blocks = _divided(hidden, table, entries)
    weight = cotangents[0] / temperature

    def add(gradients, j):
        logits, block, numbers = blocks.logits(x, words, temperature, j)
        change = (numbers == targets[:, None, None]) - jnp.exp(logits - log_z[:, None, None])
        change = (weight[:, None, None] * change).astype(x.dtype)
        of_hidden, of_table = gradients
        of_hidden += jnp.einsum("nsw,swd->nsd", change, block, preferred_element_type=jnp.float32)
        of_block = jnp.einsum("nsw,nd->swd", change, x, preferred_element_type=jnp.float32)
        of_block = constrain(of_block, "vocab", None, "width")
        of_block += jax.lax.dynamic_slice_in_dim(of_table, blocks.start(j), blocks.width, axis=1)
        of_table = jax.lax.dynamic_update_slice_in_dim(of_table, of_block, blocks.start(j), axis=1)
        return (constrain(of_hidden, "rows", "vocab", None), constrain(of_table, "vocab", None, "width")), None

    zeros = jnp.zeros((x.shape[0], blocks.shards, x.shape[1]), jnp.float32), jnp.zeros(words.shape, jnp.float32)
    zeros = constrain(zeros[0], "rows", "vocab", None), constrain(zeros[1], "vocab", None, "width")
    (of_hidden, of_table), _ = jax.lax.scan(add, zeros, jnp.arange(blocks.count))
    return of_hidden.sum(1).astype(hidden.dtype), of_table.reshape(table.shape).astype(table.dtype), None, None


_blockwise.defvjp(_forward, _backward)
