"""The sampler's cache: a slot for every sample in flight, and columns that all slots share.

A token of slot s stands in the same column in every layer of a band. All slots write one column at a time, the next one; a slot's sequence
is the columns from its start to the last written, wherever it began. So writing is one contiguous update, whatever the slots'
lengths are, and a sliding window is the last columns for everybody.

Worked example, 2 slots, prompts "a b" and "c", after two tokens: columns  0 1 2 3
                                                               slot 0      a b x y    start 0
                                                               slot 1      . c z w    start 1
Slot 1 ends and a sample with the prompt "d e" takes it, at column 4:       slot 1      . . d e    start 2

Layers with a window keep little more than its columns: they are a band of their own, whose columns are given up as they fall out
of the window. So every band has its own place to write.

Shape letters: S slots, B columns, K key/value heads, C head channels, N prompts, T columns of a prompt.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from antisd_jax.batching import rungs
from antisd_jax.model.parameters import ModelConfig
from antisd_jax.model.sharding import constrain, on_shards

AXES = ("rows", "kv_heads", None, None)
LEAST_COLUMNS = 128
LANES = 64  # the last size is a multiple of this


@struct.dataclass
class Cache:
    """One band's keys: a list of [S K C B], one a layer; values: of [S K B C]."""

    keys: Any
    values: Any

    @property
    def columns(self) -> int:
        """B."""
        return self.keys[0].shape[3]


@dataclass(frozen=True)
class Band:
    """Layers that look back equally far: `window` tokens, or at everything (None)."""

    window: int | None
    layers: tuple[int, ...]

    def columns(self, b: int, steps: int) -> int:
        """How many it has, where a layer without a window has b: room for the window, and for a quarter of it until it is moved."""
        return b if self.window is None else min(b, columns(self.window + max(steps, self.window // 4)))


def bands(c: ModelConfig) -> list[Band]:
    """The model's bands, by window."""
    windows = [c.kinds[i % len(c.kinds)].window for i in range(c.layers)]
    return [Band(w, tuple(i for i in range(c.layers) if windows[i] == w)) for w in dict.fromkeys(windows)]


def columns(needed: int) -> int:
    """The least of 128, 192, 256, 384, 512, … that is at least `needed`: few shapes, hence few compilations."""
    return rungs(LEAST_COLUMNS, needed)[-1]


def ladder(prompt: int, responses: int, steps: int) -> list[int]:
    """The numbers of columns that such samples come to, decoding `steps` tokens at a time. The last is all that is ever needed."""
    most = -(-(prompt + -(-responses // steps) * steps) // LANES) * LANES
    return [*(size for size in rungs(LEAST_COLUMNS, most)[:-1] if size >= prompt + steps), most]


def following(b: int, used: int, steps: int, ladder: list[int]) -> int:
    """The size after b, when `used` columns are kept: a quarter more than those, and for few programs at most one rung down."""
    wanted = next((size for size in ladder if size >= used + max(steps, used // 4)), ladder[-1])
    return max(wanted, ladder[max(ladder.index(b) - 1, 0)])


def size_bytes(c: ModelConfig, slots: int, b: int, steps: int, dtype) -> int:
    """Bytes of a cache whose layers without a window have b columns, over all devices."""
    held = sum(len(band.layers) * band.columns(b, steps) for band in bands(c))
    return 2 * slots * c.kv_heads * c.head_dim * held * jnp.dtype(dtype).itemsize


@partial(jax.jit, static_argnames=("c", "slots", "b", "steps", "dtype"))
def empty(c: ModelConfig, slots: int, b: int, steps: int, dtype) -> list[Cache]:
    """A Cache for every band, of zeros."""

    def one(band: Band) -> Cache:
        width = band.columns(b, steps)
        keys = [constrain(jnp.zeros((slots, c.kv_heads, c.head_dim, width), dtype), *AXES) for _ in band.layers]
        values = [constrain(jnp.zeros((slots, c.kv_heads, width, c.head_dim), dtype), *AXES) for _ in band.layers]
        return Cache(keys, values)

    return [one(band) for band in bands(c)]


def aligned(c: ModelConfig, kv, lengths) -> list[Cache]:
    """Keys and values of right-padded prompts, two arrays [L N T K C], lengths [N] → a Cache of N slots for every band.

    Prompts stand at its end; a band with a window has their last columns only.
    """
    t = kv[0].shape[2]

    def one(band: Band) -> Cache:
        width = min(t, band.window or t)
        source = (jnp.arange(t - width, t) - (t - lengths[:, None])) % t

        def shifted(x, i):
            return jnp.take_along_axis(x[i], source[:, :, None, None], axis=1)

        keys = [shifted(kv[0], i).transpose(0, 2, 3, 1) for i in band.layers]
        return Cache(keys, [shifted(kv[1], i).transpose(0, 2, 1, 3) for i in band.layers])

    return [one(band) for band in bands(c)]


def write(cache: Cache, block: Cache, at) -> Cache:
    """Columns [at, at + width of the block) of every slot."""
    keys = [jax.lax.dynamic_update_slice_in_dim(x, b, at, axis=3) for x, b in zip(cache.keys, block.keys)]
    values = [jax.lax.dynamic_update_slice_in_dim(x, b, at, axis=2) for x, b in zip(cache.values, block.values)]
    return Cache(keys, values)


@partial(jax.jit, donate_argnames=("caches",))
def admit(caches: list[Cache], prompts: list[Cache], take, source, at) -> list[Cache]:
    """Prompt number source[s] of the slot's own shard, at the columns before at[band], for every slot with take[s]."""
    take, source = constrain(take, "rows"), constrain(source, "rows")

    def place(x, stored, take, source, now, axis):
        width = stored.shape[axis]
        block = jnp.where(take[:, None, None, None], stored[source], jax.lax.dynamic_slice_in_dim(x, now - width, width, axis))
        return jax.lax.dynamic_update_slice_in_dim(x, block, now - width, axis)

    def layers(xs, stored, now, axis):
        f = on_shards(partial(place, axis=axis), (AXES, AXES, ("rows",), ("rows",), ()), AXES)
        return [f(x, s, take, source, now) for x, s in zip(xs, stored)]

    def one(cache, prompts, now) -> Cache:
        return Cache(layers(cache.keys, prompts.keys, now, 3), layers(cache.values, prompts.values, now, 2))

    return [one(*band) for band in zip(caches, prompts, at)]


def resize(cache: Cache, drop: int, b: int) -> Cache:
    """b columns, from column `drop` on. Array by array, each given up before the next: two whole caches never exist."""
    for arrays, axis in ((cache.keys, 3), (cache.values, 2)):
        for i, x in enumerate(arrays):
            arrays[i] = resized(x, drop, b, axis)
    return cache


@partial(jax.jit, static_argnames=("b", "axis"))
def resized(x, drop, b: int, axis: int):
    """b columns of an array [S K C B] or [S K B C], from column `drop` on; axis: where its columns are."""
    more = [(0, b if i == axis else 0) for i in range(4)]
    return jax.lax.dynamic_slice_in_dim(jnp.pad(x, more), drop, b, axis)


def gathered(tree, source):
    """Slots source [S'] (numbers within their own shard) of arrays [S …]."""

    def one(x):
        axes = AXES if x.ndim == 4 else ("rows", *[None] * (x.ndim - 1))
        return on_shards(lambda a, i: a[i], (axes, ("rows",)), axes)(x, source)

    return jax.tree.map(one, tree)
