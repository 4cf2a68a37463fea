"""The GPU's grouped products, interpreted, against sums in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from antisd_jax.model.grouped import fits, grouped_dot

GROUPS = [  # rows, width before, width after, rows of each group
    (200, 32, 48, [0, 50, 3, 100, 0, 20]),  # empty groups, and rows of none
    (64, 64, 128, [64]),
    (700, 64, 32, [500, 1, 0, 199]),  # several tiles, the last not full
    (17, 16, 16, [1] * 9),
]


@pytest.mark.parametrize("n, i, j, sizes", GROUPS)
def test_products_and_gradients_are_those_of_each_group(n, i, j, sizes):
    rng = np.random.default_rng(0)
    x, w, g = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in ((n, i), (len(sizes), i, j), (n, j)))
    out, pullback = jax.vjp(lambda x, w: grouped_dot(x, w, jnp.array(sizes), True), x, w)
    found = (out, *pullback(g))
    x, w, g = (np.asarray(a, np.float64) for a in (x, w, g))
    ends = np.cumsum(sizes)
    wanted = np.zeros((n, j)), np.zeros((n, i)), np.zeros(w.shape)
    for e, part in enumerate(slice(end - size, end) for size, end in zip(sizes, ends)):
        wanted[0][part], wanted[1][part], wanted[2][e] = x[part] @ w[e], g[part] @ w[e].T, x[part].T @ g[part]
    for name, a, b, rows in zip(("product", "rows", "matrices"), found, wanted, (ends[-1], ends[-1], None)):
        error = np.abs(np.asarray(a, np.float64)[:rows] - b[:rows])
        assert (error <= 2**-8 * np.abs(b[:rows]) + 1e-4 * np.abs(b).max()).all(), name


def test_what_the_kernel_does_not_take_is_left_to_xla():
    x, w = jnp.zeros((32, 64), jnp.bfloat16), jnp.zeros((4, 64, 32), jnp.bfloat16)
    assert fits(x, w)
    assert not fits(x.astype(jnp.float32), w.astype(jnp.float32))
    assert not fits(x[:8], w) and not fits(x, w[..., :20])
