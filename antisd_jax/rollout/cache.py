"""The sampler's cache: a slot for every sample in flight, and columns that all slots share.

A token of slot s stands in the same column in every layer. All slots write one column at a time, the next one; a slot's sequence
is the columns from its start to the last written, wherever it began. So writing is one contiguous update, whatever the slots'
lengths are, and a sliding window is the last columns for everybody.

Worked example, 2 slots, prompts "a b" and "c", after two tokens: columns  0 1 2 3
                                                               slot 0      a b x y    start 0
                                                               slot 1      . c z w    start 1
Slot 1 ends and a sample with the prompt "d e" takes it, at column 4:       slot 1      . . d e    start 2

Shape letters: S slots, B columns, K key/value heads, C head channels, N prompts, T columns of a prompt.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from antisd_jax.model.parameters import ModelConfig
from antisd_jax.model.sharding import constrain, on_shards

KEYS, VALUES = ("rows", "kv_heads", None, None), ("rows", "kv_heads", None, None)
LEAST_COLUMNS = 128


@struct.dataclass
class Cache:
    """keys: a list of [S K C B], one a layer; values: of [S K B C]."""

    keys: Any
    values: Any


def columns(needed: int) -> int:
    """The least of 128, 192, 256, 384, 512, … that is at least `needed`: few shapes, hence few compilations."""
    size = LEAST_COLUMNS
    while size < needed:
        size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
    return size


def size_bytes(c: ModelConfig, slots: int, b: int, dtype) -> int:
    """Bytes of a cache, over all devices."""
    return 2 * c.layers * slots * c.kv_heads * c.head_dim * b * jnp.dtype(dtype).itemsize


@partial(jax.jit, static_argnames=("c", "slots", "b", "dtype"))
def empty(c: ModelConfig, slots: int, b: int, dtype) -> Cache:
    keys = [constrain(jnp.zeros((slots, c.kv_heads, c.head_dim, b), dtype), *KEYS) for _ in range(c.layers)]
    values = [constrain(jnp.zeros((slots, c.kv_heads, b, c.head_dim), dtype), *VALUES) for _ in range(c.layers)]
    return Cache(keys, values)


def aligned(kv, lengths) -> Cache:
    """Keys and values of right-padded prompts, two arrays [L N T K C], lengths [N] → a Cache of N slots with the prompts at its end."""
    t = kv[0].shape[2]
    source = (jnp.arange(t) - (t - lengths[:, None])) % t

    def shifted(x):
        return jnp.take_along_axis(x, source[None, :, :, None, None], axis=2)

    keys, values = (shifted(x) for x in kv)
    return Cache(list(keys.transpose(0, 1, 3, 4, 2)), list(values.transpose(0, 1, 3, 2, 4)))


def write(cache: Cache, block: Cache, at) -> Cache:
    """Columns [at, at + width of the block) of every slot."""
    keys = [jax.lax.dynamic_update_slice_in_dim(x, b, at, axis=3) for x, b in zip(cache.keys, block.keys)]
    values = [jax.lax.dynamic_update_slice_in_dim(x, b, at, axis=2) for x, b in zip(cache.values, block.values)]
    return Cache(keys, values)


@partial(jax.jit, donate_argnames=("cache",))
def admit(cache: Cache, prompts: Cache, take, source, now) -> Cache:
    """Prompt number source[s] of the slot's own shard, at the columns before `now`, for every slot with take[s]."""

    def place(x, stored, take, source, now, axis):
        width = stored.shape[axis]
        block = jnp.where(take[:, None, None, None], stored[source], jax.lax.dynamic_slice_in_dim(x, now - width, width, axis))
        return jax.lax.dynamic_update_slice_in_dim(x, block, now - width, axis)

    def layers(xs, stored, axes, axis):
        f = on_shards(partial(place, axis=axis), (axes, axes, ("rows",), ("rows",), ()), axes)
        return [f(x, s, take, source, now) for x, s in zip(xs, stored)]

    return Cache(layers(cache.keys, prompts.keys, KEYS, 3), layers(cache.values, prompts.values, VALUES, 2))


@partial(jax.jit, static_argnames=("b",))
def resize(cache: Cache, drop, b: int) -> Cache:
    """b columns, from column `drop` on."""

    def one(x, axis):
        x = jnp.roll(x, -drop, axis)
        more = [(0, max(b - x.shape[axis], 0) if i == axis else 0) for i in range(4)]
        return jax.lax.slice_in_dim(jnp.pad(x, more), 0, b, axis=axis)

    return Cache([one(x, 3) for x in cache.keys], [one(x, 2) for x in cache.values])


def gathered(tree, source):
    """Slots source [S'] (numbers within their own shard) of arrays [S …]."""

    def one(x):
        axes = ("rows", "kv_heads", None, None) if x.ndim == 4 else ("rows", *[None] * (x.ndim - 1))
        return on_shards(lambda a, i: a[i], (axes, ("rows",)), axes)(x, source)

    return jax.tree.map(one, tree)
