import jax
import numpy as np
import pytest

from antisd_jax.objective.loss import clipped_surrogate, importance_weight, row_weights

LENGTHS = np.array([3, 1, 4])
ALL = np.ones(3, bool)


def test_denominators_by_hand():
    assert np.allclose(row_weights(LENGTHS, ALL, "token_mean", 10), 1 / 8)
    assert np.allclose(row_weights(LENGTHS, ALL, "sequence_mean", 10), [1 / 9, 1 / 3, 1 / 12])
    assert np.allclose(row_weights(LENGTHS, ALL, "constant", 10), 1 / 30)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
def test_rows_left_out_weigh_nothing_and_are_not_in_the_denominator(aggregation):
    some = row_weights(LENGTHS, np.array([True, False, True]), aggregation, 10)
    assert some[1] == 0
    assert np.allclose(some[[0, 2]], row_weights(LENGTHS[[0, 2]], ALL[:2], aggregation, 10))


def test_clip_by_hand():
    # ρ = 1.5 with A > 0 is cut at 1.2; ρ = 0.5 with A < 0 is cut at 0.8; the other two signs are not cut.
    old, new = np.zeros((1, 4)), np.log([[1.5, 0.5, 1.5, 0.5]])
    advantage = np.array([[1.0, -1.0, -1.0, 1.0]])
    loss, clipped = clipped_surrogate(new, old, advantage, np.ones((1, 4)), 0.2, 0.2)
    assert float(loss) == pytest.approx(-(1.2 - 0.8 - 1.5 + 0.5))
    assert clipped.tolist() == [[True, True, False, False]]
    higher, _ = clipped_surrogate(new, old, advantage, np.ones((1, 4)), 0.2, 0.28)
    assert float(higher) == pytest.approx(-(1.28 - 0.8 - 1.5 + 0.5))


def test_first_update_is_the_policy_gradient():
    logp, advantage = np.array([[-1.0, -2.0]]), np.array([[3.0, -5.0]])
    gradient = jax.grad(lambda x: clipped_surrogate(x, logp, advantage, np.full((1, 2), 0.5), 0.2, 0.2)[0])(logp)
    assert np.allclose(gradient, -0.5 * advantage)


def test_the_importance_weight_by_hand():
    """e^0.5; capped at 2; e^-1; a difference of rounding counts as none."""
    logp, sampled = np.array([-1.0, -1.0, -2.0, -1.0]), np.array([-1.5, -3.0, -1.0, -1.009])
    assert np.allclose(importance_weight(logp, sampled, 2.0), [np.exp(0.5), 2.0, np.exp(-1.0), 1.0])
