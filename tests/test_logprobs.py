"""Log-probs over blocks of the vocabulary against float64 written out whole; and the memory and products that XLA says they take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from antisd_jax.model.logprobs import LOGITS, _divided, token_logprobs
from antisd_jax.model.sharding import MeshConfig, make_mesh, named, use_mesh

B, R, D, V = 8, 5, 16, 520


@pytest.fixture(scope="module")
def case():
    a, b, c, d = jax.random.split(jax.random.key(0), 4)
    hidden, table = 3 * jax.random.normal(a, (B, R, D)), jax.random.normal(b, (V, D))
    return hidden, table, jax.random.randint(c, (B, R), 0, V), jax.random.normal(d, (B, R))


def reference(hidden, table, targets, weight, temperature):
    """numpy, float64, all logits at once: (log-probs, entropies, gradients of Σ weight · log-prob)."""
    h, w = np.asarray(hidden, np.float64), np.asarray(table, np.float64)
    logits = h @ w.T / temperature
    logits -= logits.max(-1, keepdims=True)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    change = (np.eye(len(w))[np.asarray(targets)] - np.exp(logp)) * np.asarray(weight, np.float64)[..., None] / temperature
    chosen = np.take_along_axis(logp, np.asarray(targets)[..., None], -1)[..., 0]
    return chosen, -(np.exp(logp) * logp).sum(-1), change @ w, np.einsum("brv,brd->vd", change, h)


def ours(hidden, table, targets, weight, temperature, entries):
    def loss(hidden, table):
        logp, entropy = token_logprobs(hidden, table, targets, temperature, entries)
        return (logp * weight).sum(), (logp, entropy)

    gradients, told = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(hidden, table)
    return *told, *gradients


def farthest(a, b):
    """Largest difference, relative to the largest entry."""
    return max(float(np.abs(np.asarray(x, np.float64) - y).max() / np.abs(y).max()) for x, y in zip(a, b))


@pytest.mark.parametrize("entries, blocks", [(1, 5), (B * R * 260, 2), (B * R * V, 1)])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_values_and_gradients_equal_float64(case, entries, blocks, temperature):
    assert _divided(case[0].reshape(-1, D), case[1], entries)[2].count == blocks
    assert farthest(ours(*case, temperature, entries), reference(*case, temperature)) < 1e-5


@pytest.mark.parametrize("mesh", [MeshConfig(1, 2, 4), MeshConfig(2, 1, 1, 4), MeshConfig(1, 1, 8)])
def test_the_same_where_words_and_rows_are_split(case, mesh):
    mesh = make_mesh(mesh)
    hidden, table, targets, weight = case
    placed = [jax.device_put(x, named(mesh, "rows")) for x in (hidden, targets, weight)]
    with use_mesh(mesh):
        out = ours(placed[0], jax.device_put(table, named(mesh, "vocab", "width")), *placed[1:], 0.7, 1)
    assert farthest(out, reference(*case, 0.7)) < 1e-5


def test_certain_and_hopeless_tokens(case):
    """Logits of thousands: probabilities of exactly 1 and of nothing, and no NaN on the way."""
    hidden, table, _, weight = case
    best = jnp.argmax(hidden @ table.T, -1)
    logp, entropy, *gradients = ours(1000 * hidden, table, best, weight, 1.0, 1)
    assert np.abs(logp).max() < 1e-6 and np.abs(entropy).max() < 1e-6 and all(np.isfinite(g).all() for g in gradients)
    worst, *_ = ours(1000 * hidden, table, jnp.argmin(hidden @ table.T, -1), weight, 1.0, 1)
    assert np.isfinite(worst).all() and worst.max() < -1000


def test_bfloat16_activations_meet_the_table_in_bfloat16_and_are_summed_in_float32(case):
    hidden, table, targets, weight = case
    rounded = hidden.astype(jnp.bfloat16), table.astype(jnp.bfloat16).astype(jnp.float32)
    got = ours(rounded[0], rounded[1], targets, weight, 1.0, 1)
    assert [x.dtype.name for x in got] == ["float32", "float32", "bfloat16", "float32"]
    wanted = reference(rounded[0].astype(jnp.float32), rounded[1], targets, weight, 1.0)
    assert farthest(got[:2], wanted[:2]) < 1e-5, "products of bfloat16 numbers are exact in float32"
    assert farthest(got[2:], wanted[2:]) < 0.01


def test_no_gradient_flows_through_the_entropy(case):
    hidden, table, targets, _ = case
    gradient = jax.grad(lambda h: token_logprobs(h, table, targets, 1.0)[1].sum())(hidden)
    assert not gradient.any()


def test_peak_memory_is_below_a_tenth_of_the_plain_program_for_a_third_more_products():
    """8,192 tokens × 151,936 words × width 1,024, float32. XLA counts a loop's products once, whatever its blocks."""
    tokens, words, width = 8192, 151_936, 1024
    abstract = jax.ShapeDtypeStruct
    hidden, table = abstract((1, tokens, width), jnp.float32), abstract((words, width), jnp.float32)
    targets, weight = abstract((1, tokens), jnp.int32), abstract((1, tokens), jnp.float32)

    def plain(hidden, table, targets, weight):
        def loss(hidden, table):
            logp = jax.nn.log_softmax(hidden @ table.T)
            return (jnp.take_along_axis(logp, targets[..., None], -1)[..., 0] * weight).sum()

        return jax.grad(loss, (0, 1))(hidden, table)

    def taken(f, *shapes):
        compiled = jax.jit(f).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes, compiled.cost_analysis()["flops"]

    memory, products = taken(plain, hidden, table, targets, weight)
    less, of_a_block = taken(lambda *a: ours(*a, 1.0, LOGITS), hidden, table, targets, weight)
    more = of_a_block * _divided(jnp.zeros((tokens, 1)), jnp.zeros((words, 1)), LOGITS)[2].count / products
    print(f"memory {less / 2**30:.2f} of {memory / 2**30:.2f} GiB; products {more:.3f} of the plain program's")
    assert products > 6 * tokens * words * width and 1.3 < more < 1.35
    assert less < memory / 10
