"""The decoder by itself: padding, remat, meshes, parameter counts."""

import contextlib
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import sharpened
from families import OLMO3_7B, QWEN3_8B, QWEN3_30B_A3B, REAL, small

from antisd_jax.errors import UserError
from antisd_jax.metrics import load_metrics
from antisd_jax.model import moe
from antisd_jax.model.decoder import REMAT, forward
from antisd_jax.model.logprobs import token_logprobs
from antisd_jax.model.moe import mixture, route
from antisd_jax.model.parameters import Experts, ModelConfig, abstract, count, declare, init
from antisd_jax.model.rope import Rope
from antisd_jax.model.settings import parse
from antisd_jax.model.sharding import MeshConfig, make_mesh, param_shardings, spec, use_mesh

TOKENS = np.random.default_rng(0).integers(0, 40, (8, 150))
FAMILIES = {
    "qwen3": parse(small(QWEN3_8B), ""),
    "qwen3_moe": parse(small(QWEN3_30B_A3B), ""),
    "olmo3": parse(small(OLMO3_7B), ""),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    c = FAMILIES[request.param]
    return c, sharpened(init(c, 5))


def logits(c, weights, tokens=TOKENS):
    return np.asarray(jax.jit(lambda w, t: forward(c, w, t)[0] @ w.output.T)(weights, tokens))


def test_the_rope_base_matters_at_this_length(family):
    c, weights = family
    kinds = tuple(type(k)(Rope(1e7, k.rope.yarn), k.window) for k in c.kinds)
    other = ModelConfig(**{**c.__dict__, "kinds": kinds})
    assert np.abs(logits(c, weights) - logits(other, weights)).max() > 1e-2


def test_the_window_and_yarn_matter_at_this_length():
    c = FAMILIES["olmo3"]
    weights = sharpened(init(c, 5))
    for change in (lambda k: type(k)(k.rope, None), lambda k: type(k)(Rope(k.rope.base), k.window)):
        other = ModelConfig(**{**c.__dict__, "kinds": tuple(map(change, c.kinds))})
        assert np.abs(logits(c, weights) - logits(other, weights))[:, 64:].max() > 1e-2


def test_padding_to_the_right_changes_nothing_before_it(family):
    c, weights = family
    changed = TOKENS.copy()
    changed[:, 100:] = 0
    assert np.abs(logits(c, weights)[:, :100] - logits(c, weights, changed)[:, :100]).max() < 1e-4


def gradient_of(c, remat="none"):
    """A compiled (weights, tokens) → ((loss, (logits, load)), gradient) over the first 140 tokens of each row."""

    def loss(w, tokens):
        hidden, kept = forward(c, w, tokens, np.full(8, 140), remat=remat)
        logp, _ = token_logprobs(hidden[:, :139], w.output, tokens[:, 1:140], 1.0, 64)
        return logp.mean(), (hidden[:, :140] @ w.output.T, kept.load)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.fixture(scope="module")
def reference():
    """Each family's on one device, keeping everything."""
    return functools.cache(lambda name: gradient_of(FAMILIES[name])(sharpened(init(FAMILIES[name], 5)), TOKENS))


def same(a, b, tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.abs(np.asarray(x) - np.asarray(y)).max() <= tolerance * np.abs(np.asarray(x)).max()


@pytest.mark.parametrize("name, remat", [("qwen3", "dots"), ("qwen3", "attention"), ("qwen3_moe", "full"), ("olmo3", "attention")])
def test_remat_does_not_change_the_gradient(reference, name, remat):
    c = FAMILIES[name]
    same(reference(name)[1], gradient_of(c, remat)(sharpened(init(c, 5)), TOKENS)[1], 1e-4)


def test_each_remat_policy_keeps_less_than_the_one_before():
    c = parse(small(QWEN3_8B, num_hidden_layers=16), "")

    def temporaries(remat):
        gradient = jax.jit(jax.grad(lambda w: forward(c, w, np.resize(TOKENS, (8, 256)), remat=remat)[0].sum()))
        weights = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, np.float32), declare(c))
        return gradient.lower(weights).compile().memory_analysis().temp_size_in_bytes

    sizes = [temporaries(r) for r in REMAT]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes), sizes
    weights = 4 * count(c)
    assert sizes[-1] < sizes[0] / 3 and sizes[-1] > weights, (sizes, weights)


# data, fsdp, tensor, expert
MESHES = [(name, mesh) for name in FAMILIES for mesh in ((8,), (2, 2, 2))] + [("qwen3", (1, 8)), ("olmo3", (1, 2, 4))]
MESHES += [("qwen3_moe", mesh) for mesh in ((2, 1, 2, 2), (1, 2, 2, 2), (1, 1, 1, 8), (1, 2, 1, 4))]


@pytest.mark.parametrize(
    "name, mesh", [m if m[1] in ((2, 2, 2), (1, 2, 2, 2)) else pytest.param(*m, marks=pytest.mark.long) for m in MESHES]
)
def test_the_same_logits_and_gradients_on_every_mesh(reference, name, mesh):
    c, mesh = FAMILIES[name], make_mesh(MeshConfig(*mesh))
    (_, (expected, load)), gradient = reference(name)
    with use_mesh(mesh):
        placed = jax.device_put(sharpened(init(c, 5)), param_shardings(mesh, declare(c)))
        (_, (got, load_got)), gradient_got = gradient_of(c)(placed, TOKENS)
    assert np.abs(np.asarray(got) - np.asarray(expected)).max() < 1e-4
    same(load, load_got, 0)
    same(gradient, gradient_got, 1e-3)


def test_no_token_is_dropped_when_all_choose_the_same_experts():
    """Expert e multiplies by e + 1: every token must come back from both of its experts, on one device and on eight."""
    eye = np.eye(8, dtype=np.float32)
    scale = np.arange(1, 9, dtype=np.float32)[:, None, None]
    x = np.abs(np.random.default_rng(0).normal(size=(8, 30, 8))).astype(np.float32) + 20  # silu(x) is x to the last bit
    chosen = np.broadcast_to(np.array([6, 1]), (8, 30, 2))
    probabilities = np.broadcast_to(np.array([0.75, 0.25], np.float32), (8, 30, 2))
    gate, up, down = eye + 0 * scale, 0 * scale + 1 / 8 / x.mean() * np.ones((8, 8), np.float32), eye * scale
    expected = x * (x.sum(-1, keepdims=True) / 8 / x.mean()) * (0.75 * 7 + 0.25 * 2)
    assert np.allclose(mixture(x, probabilities, chosen, gate, up, down), expected, rtol=1e-5)
    for shape in (MeshConfig(1, 1, 1, 8), MeshConfig(1, 2, 2, 2)):
        with use_mesh(make_mesh(shape)):
            assert np.allclose(jax.jit(mixture)(x, probabilities, chosen, gate, up, down), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [None, (1, 1, 1, 8), (1, 2, 2, 2)])
def test_chunks_of_tokens_do_not_change_a_mixture(monkeypatch, shape):
    """Values and gradients, the last chunk cut short."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 30, 16)).astype(np.float32)
    weights = [rng.normal(size=s).astype(np.float32) / 4 for s in ((8, 16, 8), (8, 16, 8), (8, 8, 16))]
    probabilities, chosen = map(jnp.asarray, route(x, rng.normal(size=(16, 8)).astype(np.float32), Experts(8, 2, True)))

    def run(chunk):
        monkeypatch.setattr(moe, "CHUNK", chunk)
        loss = lambda x, p, *w: (mixture(x, p, chosen, *w) ** 2).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3, 4)))(x, probabilities, *weights)

    expected = run(10**6)
    with use_mesh(make_mesh(MeshConfig(*shape))) if shape else contextlib.nullcontext():
        same(expected, run(56), 1e-4)


def test_the_load_counts_real_tokens_once_an_expert():
    c = FAMILIES["qwen3_moe"]
    lengths = np.arange(8) * 20 + 3
    _, kept = forward(c, sharpened(init(c, 5)), TOKENS, lengths)
    load = np.asarray(kept.load)
    assert (load.sum(axis=1) == lengths.sum() * c.experts.per_token).all()
    assert (load <= lengths.sum()).all()


def test_load_metrics_by_hand():
    got = load_metrics(np.array([[2, 2, 2, 2], [8, 0, 0, 0]]))
    assert got == {"moe/load_max": 2.5, "moe/load_entropy": 0.5, "moe/idle_experts": 3 / 8}


COUNTS = {
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-4B-Instruct-2507": 4_022_468_096,
    "Olmo-3-7B-Instruct": 7_298_011_136,
    "Olmo-3-7B-Think": 7_298_011_136,
    "Qwen3-30B-A3B": 30_532_122_624,
}


@pytest.mark.parametrize("name", REAL)
def test_parameter_counts_of_the_real_configs_from_shapes_alone(name):
    c = parse(json.loads(json.dumps(REAL[name])), name)
    assert count(c) == COUNTS[name]
    mesh = make_mesh(MeshConfig(1, 2, 2, 2 if c.experts else 1), jax.devices()[: 8 if c.experts else 4])
    shapes = abstract(c, mesh)
    local = sum(math.prod(w.sharding.shard_shape(w.shape)) for w in jax.tree.leaves(shapes))
    assert COUNTS[name] / mesh.size <= local < COUNTS[name] / mesh.size * 1.001
    hidden, _ = jax.eval_shape(lambda w, t: forward(c, w, t, remat="full"), shapes, jax.ShapeDtypeStruct((2, 4096), np.int32))
    assert hidden.shape == (2, 4096, c.width)


def test_two_axes_of_one_array_on_one_mesh_axis_are_an_error():
    with pytest.raises(ValueError, match="put one mesh axis to two uses"):
        spec(("heads", "feed_forward"))


def test_a_mesh_that_does_not_fit_is_refused(model):
    with pytest.raises(UserError, match="data 3 × fsdp 1 × tensor 1 × expert 1 does not fit 8 devices"):
        make_mesh(MeshConfig(3))
    with pytest.raises(UserError, match="k_proj.weight has 2 kv_heads, not divisible by tensor = 4"):
        param_shardings(make_mesh(MeshConfig(1, 2, 4)), declare(model))
    with pytest.raises(UserError, match="gate_proj.weight has 16 experts, not divisible by expert = 32"):
        c = FAMILIES["qwen3_moe"]
        param_shardings(jax.sharding.AbstractMesh((1, 1, 32, 1), ("data", "fsdp", "expert", "tensor")), declare(c))
