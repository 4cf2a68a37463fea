import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from antisd_jax.arrays import check_shapes, named_key, response_mask, word_sum


def test_a_shape_error_names_both_arrays():
    with pytest.raises(ValueError, match=r"B is 4 in tokens \(4, 7\) but 3 in lengths \(3,\)"):
        check_shapes(tokens=("B T", np.zeros((4, 7))), lengths=("B", np.zeros(3)))
    with pytest.raises(ValueError, match=r"tokens has shape \(4,\), wanted \[B T\]"):
        check_shapes(tokens=("B T", np.zeros(4)))


def test_keys_differ_in_every_part_and_repeat_exactly():
    parts = [(1, 2, "sample"), (1, 3, "sample"), (2, 2, "sample"), (1, 2, "evaluate")]
    drawn = {tuple(jax.random.key_data(named_key(*p)).tolist()) for p in parts}
    assert len(drawn) == 4
    assert (jax.random.key_data(named_key(*parts[0])) == jax.random.key_data(named_key(*parts[0]))).all()


def test_response_mask_by_hand():
    assert response_mask(jnp.array([2, 0]), 3).tolist() == [[True, True, False], [False] * 3]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_a_word_sum_is_that_of_numpy_on_any_mesh_and_sees_every_bit(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)) * 100, dtype)
    words = np.asarray(x).reshape(-1).view(f"uint{8 * x.dtype.itemsize}")

    def by_hand(words):
        return sum((2 * i + 1) * int(w) for i, w in enumerate(words)) % 2**32

    sharding = NamedSharding(jax.make_mesh((4, 2), ("a", "b")), PartitionSpec("a", "b"))
    assert int(word_sum(x)) == int(word_sum(jax.device_put(x, sharding))) == by_hand(words)
    for bit in range(8 * x.dtype.itemsize):
        flipped = words.copy()
        flipped[17] ^= 1 << bit
        assert int(word_sum(jnp.asarray(flipped.view(x.dtype).reshape(x.shape)))) == by_hand(flipped) != by_hand(words)
    assert int(word_sum(x[::-1])) != by_hand(words)
