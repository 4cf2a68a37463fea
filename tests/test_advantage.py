import jax
import jax.numpy as jnp
import numpy as np
import pytest

from antisd_jax.objective.advantage import Term, group_advantage, phi, term_signal, token_advantage, token_term

# −φ(u), from method notes; each also follows from ½(log 2 − log(1 + e^u)) by hand.
VECTORS = {-20: 0.346574, -5: 0.343216, -1: 0.189943, 0: 0.0, 1: -0.310057, 5: -2.156784, 20: -9.653426}


@pytest.mark.parametrize("u, expected", VECTORS.items())
def test_phi_test_vectors(u, expected):
    assert float(-phi(jnp.float32(u))) == pytest.approx(expected, abs=1e-6)


def test_minus_phi_is_bounded_above_by_half_log_two_and_falls_like_half_u():
    u = np.linspace(-60, 60, 241)
    values = -np.asarray(phi(u))
    assert values.max() <= 0.5 * np.log(2) + 1e-6
    assert np.allclose(values[u > 30], -u[u > 30] / 2 + 0.5 * np.log(2), atol=1e-5)


def test_minus_phi_is_the_derivative_of_the_jensen_shannon_generator():
    def f(r):
        return 0.5 * r * jnp.log(2 * r / (1 + r)) + 0.5 * jnp.log(2 / (1 + r))

    for u in (-3.0, -0.5, 0.0, 0.7, 4.0):
        assert float(jax.grad(f)(jnp.exp(-u))) == pytest.approx(float(-phi(jnp.float32(u))), abs=1e-5)


def distributions():
    a, b = jax.random.normal(jax.random.key(0), (2, 11)) * 2
    return a, jax.nn.log_softmax(b)


def weighted_gradient(logits, weight):
    """E_{v∼π_S}[w(v) ∇log π_S(v)] with the expectation written out over the vocabulary."""
    frozen = jax.nn.softmax(logits)

    def objective(x):
        return jnp.sum(frozen * weight * jax.nn.log_softmax(x))

    return jax.grad(objective)(logits)


def test_antisd_gradient_ascends_the_jensen_shannon_divergence():
    logits, log_t = distributions()
    u = log_t - jax.nn.log_softmax(logits)

    def jsd(x):
        log_s = jax.nn.log_softmax(x)
        log_m = jnp.logaddexp(log_s, log_t) - jnp.log(2.0)
        return 0.5 * jnp.sum(jnp.exp(log_s) * (log_s - log_m)) + 0.5 * jnp.sum(jnp.exp(log_t) * (log_t - log_m))

    assert np.allclose(weighted_gradient(logits, -phi(u)), jax.grad(jsd)(logits), atol=1e-6)


def test_sd_gradient_descends_the_reverse_kl():
    logits, log_t = distributions()
    u = log_t - jax.nn.log_softmax(logits)

    def kl(x):
        log_s = jax.nn.log_softmax(x)
        return jnp.sum(jnp.exp(log_s) * (log_s - log_t))

    assert np.allclose(weighted_gradient(logits, u), -jax.grad(kl)(logits), atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 0.3333333333, 1e6])
@pytest.mark.parametrize("normalise", [True, False])
def test_constant_rewards_give_exactly_zero(value, normalise):
    assert (group_advantage(np.full((3, 7), value), normalise) == 0).all()


def test_group_advantage_by_hand():
    # mean ¼, deviation √(3)/4: the one success gets √3, each failure −1/√3.
    assert np.allclose(group_advantage([[1, 0, 0, 0]]), [[3**0.5] + [-(3**-0.5)] * 3])
    assert np.allclose(group_advantage([[1, 0, 0, 0]], normalise=False), [[0.75, -0.25, -0.25, -0.25]])


S = np.array([[-1.0, -2.0]], np.float32)
T = np.array([[-1.5, -0.5]], np.float32)


@pytest.mark.parametrize(
    "term, expected",
    [
        (Term(-1, "jsd"), 1 - 0.5 * np.log1p(np.exp(T - S)) * 0.5 + 0.25 * np.log(2)),
        (Term(+1, "jsd"), 1 + 0.5 * np.log1p(np.exp(T - S)) * 0.5 - 0.25 * np.log(2)),
        (Term(+1, "linear"), 1 + 0.5 * (T - S)),
        (Term(-1, "linear"), 1 - 0.5 * (T - S)),
        (Term(-1, "jsd", "student"), 1 - 0.5 * np.log1p(np.exp(S)) * 0.5 + 0.25 * np.log(2)),
    ],
)
def test_every_method_is_a_value_of_one_formula(term, expected):
    assert np.allclose(token_advantage(np.ones(1), S, T, np.ones((1, 1)), 0.5, term), expected, atol=1e-6)


def test_multiplicative_composition_is_silent_where_the_group_is():
    term = Term(-1, "jsd", "teacher", "multiplicative")
    assert (np.asarray(token_advantage(np.zeros(1), S, T, np.ones((1, 1)), 0.5, term)) == 0).all()
    additive = token_advantage(np.zeros(1), S, T, np.ones((1, 1)), 0.5, Term())
    assert np.allclose(token_advantage(np.full(1, 2.0), S, T, np.ones((1, 1)), 0.5, term), 2 + 2 * np.asarray(additive), atol=1e-6)


def test_a_row_without_context_keeps_its_group_advantage():
    assert (np.asarray(token_advantage(np.full(1, 0.7, np.float32), S, T, np.zeros((1, 1)), 0.5, Term())) == np.float32(0.7)).all()


def test_the_term_is_a_constant_to_the_gradient():
    gradient = jax.grad(lambda s: jnp.sum(token_advantage(jnp.ones(1), s, T, jnp.ones((1, 1)), 0.5, Term())))(jnp.asarray(S))
    assert (np.asarray(gradient) == 0).all()


def rows(seed=0, n=6, r=9):
    """(s, t, mask) with some u beyond any clamp, a row of one token, and one whose u are all equal."""
    rng = np.random.default_rng(seed)
    s, t = -rng.exponential(1.0, (2, n, r))
    t[:, 0] -= 20.0
    t[1] = s[1] - 0.5
    mask = np.arange(r) < np.array([9, 7, 5, 1, 8, 3])[:, None]
    return s.astype(np.float32), t.astype(np.float32), mask


def released_by_hand(s, t, mask, limit):
    """The released code's term, row by row, token by token, in float64."""
    out = np.zeros(s.shape)
    for i, (s_row, t_row, m) in enumerate(zip(s.astype(float), t.astype(float), mask)):
        u = (t_row - s_row)[m]
        u = np.clip([0.0 if abs(x) > limit else x for x in u], -5, 5)
        term = np.array([-0.5 * (np.log1p(np.exp(x)) - np.log(2)) for x in u])
        deviation = term.std()
        term = (term - term.mean()) / deviation if deviation > 1e-6 else np.zeros(len(term))
        out[i, m] = np.clip(term, -5, 5)
    return out


def test_the_released_term_by_hand():
    s, t, mask = rows()
    term = Term(outlier=2.0, clamp=5.0, standardise=True, bound=5.0)
    for limit in (np.inf, 3.0, 0.7):
        got = np.asarray(token_term(s, t, term, mask, limit))
        assert np.allclose(got * mask, released_by_hand(s, t, mask, limit), atol=2e-5)
    assert (np.asarray(token_term(s, t, term, mask, np.inf))[[1, 3]][mask[[1, 3]]] == 0).all(), "nothing to standardise"


def test_an_outlier_a_clamp_and_a_bound_each_by_itself():
    s, t = np.zeros((1, 3), np.float32), np.array([[-6.0, 0.5, 4.0]], np.float32)
    linear = dict(sign=1, shape="linear")
    assert np.asarray(token_term(s, t, Term(**linear, outlier=2.0), limit=4.5)).tolist() == [[0.0, 0.5, 4.0]]
    assert np.asarray(token_term(s, t, Term(**linear, clamp=3.0))).tolist() == [[-3.0, 0.5, 3.0]]
    assert np.asarray(token_term(s, t, Term(**linear, bound=1.0))).tolist() == [[-1.0, 0.5, 1.0]]
    assert np.asarray(token_term(s, t, Term(**linear))).tolist() == t.tolist()


def test_weights_choose_tokens_and_scale_the_term():
    s, t, mask = rows()
    weights = np.zeros(s.shape)
    weights[0, 2], weights[4, 1] = 1.0, 0.25
    got = np.asarray(token_advantage(np.zeros(6), s, t, weights, 0.5, Term(), mask))
    wanted = np.where(weights > 0, -0.5 * weights * np.asarray(phi(t - s)), 0.0)
    assert np.allclose(got, wanted, atol=1e-6) and np.count_nonzero(got) == 2


def test_a_length_bonus_is_the_normalised_length():
    lengths = np.array([[4, 4, 8, 8], [5, 5, 5, 5]])
    bonus = Term(1, "linear", "length")
    t = term_signal(bonus, None, lengths, 3)
    got = token_advantage(np.zeros(8), np.full((8, 3), -1.0), t, np.ones((8, 1)), 0.5, bonus)
    assert np.allclose(got, 0.5 * np.array([-1, -1, 1, 1, 0, 0, 0, 0])[:, None] * np.ones((8, 3)))
    assert (term_signal(Term(), None, lengths, 3) == 0).all()
