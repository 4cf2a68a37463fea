from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from antisd_jax.arrays import named_key
from antisd_jax.model.decoder import forward
from antisd_jax.model.parameters import declare
from antisd_jax.model.sharding import MeshConfig, make_mesh, param_shardings, place_rows
from antisd_jax.rollout.engine import generate
from antisd_jax.rollout.sampling import Sampling, sample_token, truncate
from antisd_jax.score import score
from antisd_jax.types import Rows

R, G = 12, 3
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [5, 6, 7], [1]]
IDS = np.array([3, 11, 4, 7], np.uint32)


def arrays(prompts, width=6):
    out = np.zeros((len(prompts), width), np.int32)
    for row, p in zip(out, prompts):
        row[: len(p)] = p
    return out, np.array([len(p) for p in prompts], np.int32)


def sample(model, weights, prompts=PROMPTS, ids=IDS, key=None, s=Sampling(), stop=(0,), group=G):
    tokens, lengths = arrays(prompts)
    samples = np.tile(np.arange(group, dtype=np.uint32), (len(prompts), 1))
    key = named_key(0, 1, "sample") if key is None else key
    return jax.device_get(generate(weights, tokens, lengths, key, ids, samples, c=model, responses=R, sampling=s, stop=stop))


@partial(jax.jit, static_argnums=(0, 5))
def next_token(model, weights, row, n, key, s):
    """A full forward pass over everything said so far, row [6 + R] with n tokens."""
    return sample_token(key, (forward(model, weights, row[None])[0] @ weights.output.T)[0, n - 1], s)


def naive(model, weights, prompt, pid, sid, s, stop):
    """One token at a time."""
    key = jax.random.fold_in(jax.random.fold_in(named_key(0, 1, "sample"), pid), sid)
    said, logps = [], []
    for j in range(R):
        row = np.zeros(6 + R, np.int32)
        row[: len(prompt) + j] = prompt + said
        token, logp = next_token(model, weights, row, len(prompt) + j, jax.random.fold_in(key, j), s)
        said.append(int(token))
        logps.append(float(logp))
        if said[-1] in stop:
            break
    return said, logps


@pytest.mark.parametrize("s", [Sampling(), Sampling(0.7, top_p=0.9), Sampling(temperature=0.0), Sampling(1.3, top_k=5, min_p=0.02)])
def test_token_for_token_equal_to_a_naive_sampler(model, weights, s):
    stop = (0, 9)
    out = sample(model, weights, s=s, stop=stop)
    assert s.temperature == 0 or out.stopped.any()
    for p, prompt in enumerate(PROMPTS):
        for g in range(G):
            said, logps = naive(model, weights, prompt, IDS[p], g, s, stop)
            n = out.lengths[p, g]
            assert out.tokens[p, g, :n].tolist() == said
            assert out.stopped[p, g] == (said[-1] in stop)
            assert np.allclose(out.logprobs[p, g, :n], logps, atol=1e-4)
            assert (out.tokens[p, g, n:] == 0).all()


def test_a_rollout_does_not_depend_on_its_place_in_the_batch(model, weights):
    whole = sample(model, weights)
    order = [2, 0, 3, 1]
    moved = sample(model, weights, [PROMPTS[i] for i in order], IDS[order])
    alone = sample(model, weights, PROMPTS[1:2], IDS[1:2])
    assert (moved.tokens == whole.tokens[order]).all()
    assert (alone.tokens[0] == whole.tokens[1]).all()


def test_steps_problems_and_samples_draw_differently(model, weights):
    a, b = sample(model, weights), sample(model, weights, key=named_key(0, 2, "sample"))
    assert (a.tokens != b.tokens).any()
    assert (a.tokens[0] != a.tokens[2]).any(), "the same prompt under another problem id"
    assert (a.tokens[0, 0] != a.tokens[0, 1]).any()


def test_the_padding_id_may_be_the_stop_id(model, weights):
    """Stop id 0 is also what fills rows: a sampled 0 counts, the filling does not."""
    out = sample(model, weights, stop=(0,), s=Sampling(2.0))
    assert out.stopped.any() and not out.stopped.all()
    for p, g in np.ndindex(out.lengths.shape):
        n = out.lengths[p, g]
        assert (out.tokens[p, g, : n - 1] != 0).all()
        assert (out.tokens[p, g, n - 1] == 0) == out.stopped[p, g]
        assert n == R or out.stopped[p, g]


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_sampler_log_probs_are_the_scorers(model, weights, temperature):
    out = sample(model, weights, s=Sampling(temperature))
    rows = np.zeros((1, len(PROMPTS) * G, 6 + R), np.int32)
    lengths = np.zeros((2, 1, len(PROMPTS) * G), np.int32)
    for i, (p, g) in enumerate(np.ndindex(len(PROMPTS), G)):
        row = PROMPTS[p] + out.tokens[p, g, : out.lengths[p, g]].tolist()
        rows[0, i, : len(row)] = row
        lengths[:, 0, i] = len(PROMPTS[p]), out.lengths[p, g]
    scores = score(weights, Rows(rows, *lengths), temperature, c=model, responses=R)
    mask = np.arange(R) < out.lengths.reshape(-1, 1)
    assert np.abs(np.asarray(scores.logprobs[0]) - out.logprobs.reshape(-1, R))[mask].max() < 1e-4


@pytest.mark.parametrize("mesh", [MeshConfig(4, 1, 2), MeshConfig(2, 2, 2)])
def test_the_same_tokens_on_every_mesh(model, weights, mesh):
    mesh = make_mesh(mesh)
    placed = jax.device_put(weights, param_shardings(mesh, declare(model)))
    tokens, lengths = arrays(PROMPTS)
    rows = place_rows(mesh, (tokens, lengths, IDS, np.tile(np.arange(G, dtype=np.uint32), (4, 1))), axis=0)
    out = generate(placed, *rows[:2], named_key(0, 1, "sample"), *rows[2:], c=model, responses=R, sampling=Sampling(), stop=(0,))
    assert (np.asarray(out.tokens) == sample(model, weights).tokens).all()


def kept(probs, **changes):
    return np.isfinite(np.asarray(truncate(jnp.log(jnp.array(probs)), Sampling(**changes)))).tolist()


def test_truncation_by_hand():
    probs = [0.1, 0.5, 0.05, 0.35]
    assert kept(probs) == [True] * 4
    assert kept(probs, top_k=2) == [False, True, False, True]
    assert kept(probs, top_p=0.5) == [False, True, False, False]
    assert kept(probs, top_p=0.51) == [False, True, False, True]
    assert kept(probs, min_p=0.15) == [True, True, False, True]
    assert kept(probs, top_k=100) == [True] * 4


def test_draws_follow_the_distribution():
    logits = jnp.array([0.0, 1.0, 2.0])
    keys = jax.random.split(jax.random.key(0), 20000)
    drawn, logp = jax.vmap(lambda k: sample_token(k, logits, Sampling(2.0)))(keys)
    expected = np.exp([0.0, 0.5, 1.0]) / np.exp([0.0, 0.5, 1.0]).sum()
    assert np.allclose(np.bincount(drawn, minlength=3) / 20000, expected, atol=0.015)
    assert np.allclose(np.exp(logp), expected[np.asarray(drawn)], atol=1e-6)
