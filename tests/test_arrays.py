import jax
import jax.numpy as jnp
import numpy as np
import pytest

from antisd_jax.arrays import check_shapes, named_key, response_mask


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
