import os
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from antisd_jax.arrays import named_key
from antisd_jax.config import load
from antisd_jax.model import hf
from antisd_jax.model.decoder import forward, unstacked
from antisd_jax.model.parameters import LayerKind, declare
from antisd_jax.model.rope import Rope
from antisd_jax.model.sharding import MeshConfig, make_mesh, param_shardings, use_mesh
from antisd_jax.plan import memory
from antisd_jax.rollout.books import Books, Tally
from antisd_jax.rollout.cache import columns, following, ladder, size_bytes
from antisd_jax.rollout.engine import Program, Sampler, decode, generate, program
from antisd_jax.rollout.sampling import Sampling, look_up, sample_token, truncate
from antisd_jax.rollout.warm import compile_all
from antisd_jax.score import score
from antisd_jax.steps import build_policy, roll_out
from antisd_jax.text.rows import Problem
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
    return generate(weights, tokens, lengths, key, ids, samples, c=model, responses=R, sampling=s, stop=stop)[0]


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


@pytest.fixture(scope="module", params=[None, 4, 150])
def policy(request, model, weights):
    """(numbers, weights). Of a window every other layer: 4 is shorter than a prompt and keeps 128 columns, 150 grows a while and is moved."""
    if request.param is None:
        return model, weights
    return replace(model, kinds=(LayerKind(Rope(1e4), request.param), *model.kinds)), weights


def long(policy, slots=0, **options):
    """Up to 130 tokens: two numbers of columns, samples that end at any time, slots moved together at the end."""
    tokens, lengths = arrays(PROMPTS)
    samples = np.tile(np.arange(G, dtype=np.uint32), (len(PROMPTS), 1))
    given = dict(c=policy[0], responses=130, sampling=Sampling(1.5), stop=(0,), slots=slots) | options
    return generate(policy[1], tokens, lengths, named_key(0, 1, "sample"), IDS, samples, **given)


@pytest.mark.parametrize("slots", [2, 5])
def test_slots_that_are_refilled_say_the_same(policy, slots):
    """12 samples through fewer slots: samples enter at other columns, beside other neighbours."""
    whole, tally = long(policy)
    refilled, few = long(policy, slots)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(refilled)):
        assert np.allclose(a, b, atol=1e-5) if a.dtype == np.float32 else (a == b).all()
    assert whole.stopped.any() and np.ptp(whole.lengths) > 20
    assert few.generated == tally.generated == whole.lengths.sum() and few.visits >= tally.visits
    assert few.cache_bytes < tally.cache_bytes


def test_every_sample_is_told_once_when_it_ends(policy):
    told = {}
    out, _ = long(policy, 5, on_end=lambda p, g, tokens: told.setdefault((p, g), []).append(tokens.tolist()))
    assert told == {(p, g): [out.tokens[p, g, : out.lengths[p, g]].tolist()] for p, g in np.ndindex(len(PROMPTS), G)}


def test_log_probs_stay_the_scorers_over_many_columns(policy):
    """400 tokens: columns grow four times, and layers with a window give up theirs."""
    out, _ = long(policy, 5, responses=400, stop=(), limits=np.array([[400, 30, 350], [90, 5, 380], [16, 200, 33], [260, 1, 17]]))
    rows = np.zeros((12, 406), np.int32)
    lengths = np.zeros((2, 12), np.int32)
    for i, (p, g) in enumerate(np.ndindex(len(PROMPTS), G)):
        row = PROMPTS[p] + out.tokens[p, g, : out.lengths[p, g]].tolist()
        rows[i, : len(row)] = row
        lengths[:, i] = len(PROMPTS[p]), out.lengths[p, g]
    scores = score(policy[1], Rows(rows, *lengths), 1.5, c=policy[0], responses=400)
    mask = np.arange(400) < out.lengths.reshape(-1, 1)
    assert np.abs(np.asarray(scores.logprobs) - out.logprobs.reshape(-1, 400))[mask].max() < 1e-4


@given(
    lengths=st.lists(st.lists(st.integers(1, 150), min_size=2, max_size=2), min_size=1, max_size=5),
    slots=st.integers(0, 7),
    prompts=st.lists(st.integers(1, 6), min_size=5, max_size=5),
)
@settings(max_examples=15, deadline=None)
def test_any_workload_comes_back_whole_and_in_order(model, weights, whole_stories, lengths, slots, prompts):
    """A sample of n tokens is the beginning of the story that its prompt, problem and number lead to, whatever else is asked for."""
    wanted, sizes = np.array(lengths), np.array(prompts[: len(lengths)])
    tokens = np.tile(np.arange(1, 7, dtype=np.int32), (len(sizes), 1)) * (np.arange(6) < sizes[:, None])
    ids = 10 * np.arange(len(sizes)) + sizes  # a problem is its number and its prompt
    samples = np.tile(np.arange(2), (len(sizes), 1))
    how = dict(c=model, responses=150, sampling=Sampling(), stop=(), slots=slots, limits=wanted)
    out, tally = generate(weights, tokens, sizes, named_key(0, 1, "sample"), ids, samples, **how)
    assert (out.lengths == wanted).all() and not out.stopped.any() and tally.generated == wanted.sum() <= tally.decoded
    for i, j in np.ndindex(wanted.shape):
        assert (out.tokens[i, j, : wanted[i, j]] == whole_stories[ids[i]][j][: wanted[i, j]]).all()
        assert (out.tokens[i, j, wanted[i, j] :] == 0).all()


@pytest.fixture(scope="module")
def whole_stories(model, weights):
    """150 tokens of each problem of that test, by id, sampled all together."""
    ids = np.array([10 * problem + size for problem in range(5) for size in range(1, 7)])
    sizes = ids % 10
    tokens = np.tile(np.arange(1, 7, dtype=np.int32), (len(ids), 1)) * (np.arange(6) < sizes[:, None])
    samples = np.tile(np.arange(2), (len(ids), 1))
    out, _ = generate(weights, tokens, sizes, named_key(0, 1, "sample"), ids, samples, c=model, responses=150, sampling=Sampling(), stop=())
    return dict(zip(ids, out.tokens))


@pytest.mark.parametrize("mesh", [None, pytest.param(MeshConfig(4, 1, 2), marks=pytest.mark.long)])
def test_nothing_is_compiled_after_all_was_compiled_ahead(model, weights, mesh):
    """Whatever ends when: 240 tokens, three numbers of columns and of slots. On a mesh four shards, whose slots are never moved together."""
    jax.clear_caches()
    numbers = replace(model, kinds=(LayerKind(Rope(1e4), 24), *model.kinds))
    policy, context, sizes = (numbers, weights), nullcontext(), 3 * 3
    if mesh:
        mesh = make_mesh(mesh)
        policy, context, sizes = (numbers, jax.device_put(weights, param_shardings(mesh, declare(model)))), use_mesh(mesh), 3 * 2
    how = program(policy[0], Sampling(1.5), (0,), 240, jnp.float32)
    with context:
        named_key(0, 1, "sample")  # what `long` makes for itself
        programs = compile_all(policy[1], len(PROMPTS), G, 6, 240, how, 5)
    assert programs == sizes
    compiled = []

    def heard(event, seconds, **_):
        compiled.append(event) if event.endswith("backend_compile_duration") else None

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        rng = np.random.default_rng(0)
        for n in range(4):
            with use_mesh(mesh) if mesh else nullcontext():
                long(policy, 5, responses=240, limits=np.clip(np.exp(rng.normal(3.5, 1.5, (4, G))), 1, 240).astype(int))
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    assert compiled == []


@given(
    problems=st.integers(1, 9), group=st.integers(1, 4), ways=st.sampled_from([1, 2, 4]), seats=st.integers(1, 12), seed=st.integers(0, 99)
)
@settings(max_examples=200, deadline=None)
def test_the_books_bring_every_sample_once_whatever_ends_when(problems, group, ways, seats, seed):
    books, seen, rng = Books(problems, group, ways, ways * seats), [], np.random.default_rng(seed)

    def seated():
        return sorted((int(shard), int(books.seats[shard, seat])) for shard, seat in np.argwhere(books.busy))

    while True:
        fresh = books.seat()
        seen += [books.where(int(shard), int(books.seats[shard, seat])) for shard, seat in np.argwhere(fresh)]
        if not books.busy.any():
            break
        before = seated()
        books.together()
        assert seated() == before
        books.seats[rng.random(books.seats.shape) < 0.3] = -1
    assert sorted(seen) == [(p, g) for p in range(problems) for g in range(group)]
    assert not any(books.coming)


def test_the_ladder_of_columns_is_short_and_ends_with_what_is_needed():
    assert ladder(6, 12, 12) == [64] and ladder(64, 256, 16) == [128, 192, 256, 320]
    assert ladder(2048, 16384, 16) == [3072, 4096, 6144, 8192, 12288, 16384, 18432]
    sizes = ladder(2048, 16384, 16)
    assert following(3072, 3060, 16, sizes) == 4096 and following(16384, 16380, 16, sizes) == 18432
    assert following(12288, 100, 16, sizes) == 8192, "one rung at a time"


def test_columns_grow_in_steps_of_a_half_and_a_third():
    assert [columns(n) for n in (1, 128, 129, 192, 193, 300, 385, 16_384, 16_385)] == [128, 128, 192, 192, 256, 384, 512, 16_384, 24_576]


@pytest.mark.parametrize("slots", [0, 14])
def test_the_plan_says_how_large_the_cache_becomes(slots):
    config = load([str(ROOT / "configs" / "smoke.yaml")], ["problems=8", "samples=4", f"rollout.slots={slots}", "mesh.fsdp=2"])
    policy, folder = build_policy(config)
    problems = [Problem(i, "", "", None, "", str(i), (1,) * config.lengths.prompt) for i in range(8)]
    with use_mesh(policy.mesh):
        weights = hf.load_weights(folder, policy.model, policy.mesh)
        _, tally = roll_out(replace(policy, stop=()), weights, problems, 4, named_key(0, "plan"), Sampling())
    assert tally.cache_bytes == memory(config, policy)["cache"] * policy.mesh.size
    assert tally.layout_bytes == memory(config, policy)["decoding"]


def test_the_cache_is_as_large_as_it_is_said_to_be(model, weights):
    """Samples of 16 tokens pass through two slots, six after another: the last visit ends at column 102."""
    _, tally = long((model, weights), slots=2, stop=(), limits=np.full((len(PROMPTS), G), 16))
    assert tally.cache_bytes == size_bytes(model, 2, 128, 16, "float32") == 2 * 2 * 2 * 2 * 8 * 128 * 4
    assert tally.decoded == tally.generated == 12 * 16 and tally.visits == 6 and tally.prefilled == 12


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
    rows = np.zeros((len(PROMPTS) * G, 6 + R), np.int32)
    lengths = np.zeros((2, len(PROMPTS) * G), np.int32)
    for i, (p, g) in enumerate(np.ndindex(len(PROMPTS), G)):
        row = PROMPTS[p] + out.tokens[p, g, : out.lengths[p, g]].tolist()
        rows[i, : len(row)] = row
        lengths[:, i] = len(PROMPTS[p]), out.lengths[p, g]
    scores = score(weights, Rows(rows, *lengths), temperature, c=model, responses=R)
    mask = np.arange(R) < out.lengths.reshape(-1, 1)
    assert np.abs(np.asarray(scores.logprobs) - out.logprobs.reshape(-1, R))[mask].max() < 1e-4


@pytest.mark.parametrize("mesh", [MeshConfig(4, 1, 2), MeshConfig(2, 2, 2)])
def test_the_same_tokens_on_every_mesh(model, weights, mesh):
    mesh = make_mesh(mesh)
    placed = jax.device_put(weights, param_shardings(mesh, declare(model)))
    tokens, lengths = arrays(PROMPTS)
    samples = np.tile(np.arange(G, dtype=np.uint32), (4, 1))
    with use_mesh(mesh):
        out, _ = generate(
            placed, tokens, lengths, named_key(0, 1, "sample"), IDS, samples, c=model, responses=R, sampling=Sampling(), stop=(0,)
        )
    assert (out.tokens == sample(model, weights).tokens).all()


def test_two_processes_sample_the_same_together(model, weights, tmp_path):
    """Two devices each, over loopback, two shards of four slots: every process gets all that one alone samples."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    script = ROOT / "tests" / "process_rollout.py"
    outputs = [tmp_path / f"{n}.npz" for n in range(2)]
    commands = [[sys.executable, str(script), str(port), "2", str(n), str(outputs[n])] for n in range(2)]
    processes = [subprocess.Popen(c, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}) for c in commands]
    try:
        while (codes := [p.poll() for p in processes]) != [0, 0] and not any(codes):
            time.sleep(0.1)
    finally:
        for p in processes:
            p.kill()
    assert codes == [0, 0], "\n".join(p.stderr.read()[-2000:] for p in processes)
    alone, _ = long((replace(model, kinds=(LayerKind(Rope(1e4), 24), *model.kinds)), weights))
    for output in map(np.load, outputs):
        assert (output["tokens"] == alone.tokens).all() and (output["lengths"] == alone.lengths).all()
        assert (output["stopped"] == alone.stopped).all() and np.allclose(output["logprobs"], alone.logprobs, atol=1e-4)


def test_decoding_on_split_weights_moves_nothing_between_devices(model, weights):
    """Weights split four ways are brought together once; the compiled decode program has no collective in it."""
    mesh = make_mesh(MeshConfig(2, 4))
    placed = jax.device_put(weights, param_shardings(mesh, declare(model)))
    with use_mesh(mesh):
        layout = unstacked(model, placed, "float32")
        assert layout.layers[0].query.sharding.is_fully_replicated and not placed.layers.query.sharding.is_fully_replicated
        books, tally = Books(8, 1, 8, 8), Tally()
        how = Program(model, Sampling(), (0,), 4, "float32")
        s = Sampler(placed, np.ones((8, 6), np.int32), np.full(8, 6, np.int32), 12, books, how, tally)
        text = decode.lower(s.decoding, s.caches, s.slots, np.zeros(8, np.int32), 6, s.at, how).compile().as_text()
    body = [
        line
        for line in text.splitlines()
        if any(f" {word}(" in line for word in ("all-gather", "all-to-all", "all-reduce", "collective-permute"))
    ]
    assert body == [] and tally.layout_bytes == sum(x.nbytes for x in jax.tree.leaves(layout))


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


@pytest.mark.parametrize("n", [1, 3, 64, 65, 200])
def test_look_up_against_float64(n):
    """The first index whose cumulated weight passes u; never one of weight 0, not even at the ends."""
    rng = np.random.default_rng(n)
    weights = (rng.random(n) * (rng.random(n) < 0.5)).astype(np.float32)
    weights[rng.integers(n)] = 0.3
    us = np.concatenate([rng.random(300), [0.0, 1 - 2**-24]]).astype(np.float32)
    found = np.asarray(jax.vmap(lambda u: look_up(jnp.array(weights), u))(us))
    cumulated = np.cumsum(weights.astype(np.float64))
    expected = np.searchsorted(cumulated, us.astype(np.float64) * cumulated[-1], side="right")
    near = np.abs(cumulated[:, None] - us * cumulated[-1]).min(axis=0) < 1e-5
    assert (weights[found] > 0).all() and (near | (found == expected)).all()


def test_draws_follow_the_distribution():
    logits = jnp.array([0.0, 1.0, 2.0])
    keys = jax.random.split(jax.random.key(0), 20000)
    drawn, logp = jax.vmap(lambda k: sample_token(k, logits, Sampling(2.0)))(keys)
    expected = np.exp([0.0, 0.5, 1.0]) / np.exp([0.0, 0.5, 1.0]).sum()
    assert np.allclose(np.bincount(drawn, minlength=3) / 20000, expected, atol=0.015)
    assert np.allclose(np.exp(logp), expected[np.asarray(drawn)], atol=1e-6)
