"""Grouped matrix products on a GPU: rows that stand in order of their group, each multiplied by its group's matrix.

There XLA would make jax.lax.ragged_dot out of one product of all rows with all matrices. This kernel (Pallas, through Triton) visits
a tile of one group's rows at a time. Factors in 16-bit types, sums in float32.

Shape letters: N rows, E groups, I and J a row's width before and after, T tiles.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

INNER = 64  # entries of the contracted dimension at a time
LEAST = 16  # a tensor core's side


def fits(x, w) -> bool:
    """Whether the kernel takes such arrays: x [N I], w [E I J]."""
    return x.dtype == w.dtype and x.dtype.itemsize == 2 and len(x) >= LEAST and not any(side % LEAST for side in w.shape[1:])


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def grouped_dot(x, w, sizes, interpret: bool = False):
    """x [N I], of which the first sizes[0] rows belong to w[0] [I J], the next to w[1], …; sizes [E] → [N J].

    Rows beyond the groups' sum are undefined, in the result as in the gradient.
    """
    return _product(x, w, sizes, False, interpret)


def _forward(x, w, sizes, interpret):
    return _product(x, w, sizes, False, interpret), (x, w, sizes)


def _backward(interpret, kept, g):
    x, w, sizes = kept
    return _product(g, w, sizes, True, interpret), _outer(x, g, sizes, w.dtype, interpret), np.zeros(sizes.shape, jax.dtypes.float0)


grouped_dot.defvjp(_forward, _backward)


def _side(size: int, most: int) -> int:
    """The largest power of two from LEAST to `most` that divides the size."""
    return max(s for s in (16, 32, 64, 128) if s <= most and size % s == 0)


def _tiles(sizes, n: int, height: int):
    """(group, first row, number of rows) of each tile, [T] each; a group has at most one tile that is not full, the last tiles may be empty."""
    needed = -(-sizes // height)
    last, ends, t = jnp.cumsum(needed), jnp.cumsum(sizes), jnp.arange(n // height + len(sizes))
    group = jnp.minimum(jnp.searchsorted(last, t, side="right"), len(sizes) - 1)
    first = (ends - sizes)[group] + (t - (last - needed)[group]) * height
    return tuple(a.astype(jnp.int32) for a in (group, first, jnp.clip(ends[group] - first, 0, height)))


def _rows(first, count, height: int, n: int):
    """(a slice of `height` rows that lies within all n, which of them [height 1] are among the `count` from `first` on)."""
    begin = jnp.minimum(first, n - height)
    place = begin + jnp.arange(height)
    return pl.ds(begin, height), ((place >= first) & (place < first + count))[:, None]


def _call(kernel, grid, tile: int, out, interpret: bool, *operands):
    """tile: entries of the output that one program of the grid writes."""
    how = triton.CompilerParams(num_warps=8 if tile >= 128 * 128 else 4, num_stages=3)
    return pl.pallas_call(kernel, grid=grid, out_shape=out, compiler_params=how, interpret=interpret)(*operands)


def _product(x, w, sizes, turned: bool, interpret: bool):
    """Rows by their groups' matrices, or by those turned: x [N J] → [N I]."""
    n, contracted = x.shape
    width = w.shape[1] if turned else w.shape[2]
    rows = n // len(sizes)
    height = next((h for h in (128, 64, 32) if rows >= h // 2 and n >= h), LEAST)
    columns, inner = _side(width, 128), _side(contracted, INNER)

    def kernel(group, first, count, x, w, out):
        t, along = pl.program_id(1), pl.ds(pl.program_id(0) * columns, columns)
        row, real = _rows(first[t], count[t], height, n)
        of = group[t]

        def add(k, total):
            part = pl.ds(k * inner, inner)
            a = triton.load(x.at[row, part], mask=real, other=0.0)
            b = w[of, along, part].T if turned else w[of, part, along]
            return total + triton.dot(a, b)

        @pl.when(count[t] > 0)
        def _():
            total = jax.lax.fori_loop(0, contracted // inner, add, jnp.zeros((height, columns), jnp.float32))
            triton.store(out.at[row, along], total.astype(out.dtype), mask=real)

    tiles = _tiles(sizes, n, height)
    out = jax.ShapeDtypeStruct((n, width), x.dtype)
    return _call(kernel, (width // columns, len(tiles[0])), height * columns, out, interpret, *tiles, x, w)


def _outer(x, g, sizes, dtype, interpret: bool):
    """Σ over a group's rows of x [N I] and g [N J], for every group: [E I J]."""
    n, (i, j) = len(x), (x.shape[1], g.shape[1])
    down, across, height = _side(i, 128), _side(j, 128), next(h for h in (64, 32, 16) if n >= h)

    def kernel(begin, size, x, g, out):
        of = pl.program_id(2)
        wide, high = pl.ds(pl.program_id(0) * across, across), pl.ds(pl.program_id(1) * down, down)

        def add(k, total):
            row, real = _rows(begin[of] + k * height, jnp.minimum(size[of] - k * height, height), height, n)
            a, b = triton.load(x.at[row, high], mask=real, other=0.0), triton.load(g.at[row, wide], mask=real, other=0.0)
            return total + triton.dot(a.T, b)

        steps = (size[of] + height - 1) // height
        out[of, high, wide] = jax.lax.fori_loop(0, steps, add, jnp.zeros((down, across), jnp.float32)).astype(out.dtype)

    grid, out = (j // across, i // down, len(sizes)), jax.ShapeDtypeStruct((len(sizes), i, j), dtype)
    return _call(kernel, grid, down * across, out, interpret, jnp.cumsum(sizes) - sizes, sizes, x, g)
