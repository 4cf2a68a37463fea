import jax
import jax.numpy as jnp
import numpy as np
import pytest

from antisd_jax.arrays import check_shapes, named_key, response_mask, token_logprobs


def reference(hidden, table, targets, temperature):
    """numpy, float64, all logits at once."""
    logits = np.asarray(hidden, np.float64) @ np.asarray(table, np.float64).T / temperature
    logits -= logits.max(-1, keepdims=True)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.take_along_axis(logp, np.asarray(targets)[..., None], -1)[..., 0], -(np.exp(logp) * logp).sum(-1)


@pytest.fixture
def case():
    a, b, c = jax.random.split(jax.random.key(0), 3)
    return jax.random.normal(a, (3, 10, 8)), jax.random.normal(b, (17, 8)), jax.random.randint(c, (3, 10), 0, 17)


@pytest.mark.parametrize("chunk", [1, 7, 9, 30, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_chunked_log_probs_and_entropy_equal_float64(case, chunk, temperature):
    got = token_logprobs(*case, temperature, chunk)
    for mine, theirs in zip(got, reference(*case, temperature)):
        assert np.allclose(mine, theirs, atol=1e-5)


def test_chunked_gradient_equals_the_plain_one(case):
    hidden, table, targets = case

    def plain(h, w):
        return jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(h @ w.T / 0.7), targets[..., None], -1)[..., 0] ** 2)

    def chunked(h, w):
        return jnp.sum(token_logprobs(h, w, targets, 0.7, 9)[0] ** 2)

    for a, b in zip(jax.grad(plain, (0, 1))(hidden, table), jax.grad(chunked, (0, 1))(hidden, table)):
        assert np.allclose(a, b, atol=1e-4)


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
