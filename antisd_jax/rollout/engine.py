"""The sampler: one prefill a problem, slots that are refilled as samples end, and a decode loop that stays on the device for
many tokens at a time.

The host knows which sample is in which slot (books.py). It fills free slots, lets the device decode STEPS tokens, and looks who
has ended; when no more are coming and most slots are free it moves those still busy together. On several devices each works
through the samples of its own problems, and nothing travels between them but for the tensor and expert axes, and the few numbers
a visit that every host needs to know.

Shape letters: P problems, G samples a problem, S slots, N prompts, T prompt tokens, R response tokens, D width, W tokens a visit.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from antisd_jax.model.attention import decode_attention
from antisd_jax.model.decoder import DecodeWeights, decode_step, forward, unstacked
from antisd_jax.model.parameters import ModelConfig, Weights
from antisd_jax.model.sharding import constrain, current_mesh, everywhere, rows_per_step
from antisd_jax.processes import safe_point
from antisd_jax.rollout import cache as caching
from antisd_jax.rollout.books import Books, Tally
from antisd_jax.rollout.cache import Cache, bands
from antisd_jax.rollout.sampling import Sampling, sample_token
from antisd_jax.types import Rollouts

STEPS = 16  # tokens decoded between two visits of the host


@dataclass(frozen=True)
class Program:
    """What decoding is compiled for. steps: W."""

    c: ModelConfig
    sampling: Sampling
    stop: tuple[int, ...]
    steps: int
    dtype: Any


def program(c: ModelConfig, sampling: Sampling, stop: tuple[int, ...], responses: int, dtype) -> Program:
    """The Program of responses of at most so many tokens."""
    return Program(c, sampling, stop, min(STEPS, responses), dtype)


@struct.dataclass
class Slots:
    """What the device knows of each slot."""

    hidden: Any  # [S D] the state that predicts the next token
    keys: Any  # [S 2] random keys of the samples
    index: Any  # [S] response index of the next token
    limit: Any  # [S] response tokens at most
    done: Any  # [S] nothing more is wanted of it
    stopped: Any  # [S] a stop token ended it


def by_rows(tree):
    """Arrays with their first dimension split as rows are."""
    return jax.tree.map(lambda x: constrain(x, "rows", *[None] * (x.ndim - 1)), tree)


@partial(jax.jit, static_argnames=("c", "count", "dtype"))
def idle(c: ModelConfig, count: int, dtype) -> Slots:
    """Slots without work."""
    zero, no = jnp.zeros(count, jnp.int32), jnp.zeros(count, bool)
    return by_rows(Slots(jnp.zeros((count, c.width), dtype), jnp.zeros((count, 2), jnp.uint32), zero, zero, ~no, no))


def sample_keys(key, problem_ids, sample_ids):
    """[S] keys, one a sample: key(key, problem id, sample id)."""
    return jax.vmap(lambda p, s: jax.random.fold_in(jax.random.fold_in(key, p), s))(problem_ids, sample_ids)


@partial(jax.jit, static_argnames=("c", "dtype"))
def prefill(weights: Weights, prompts, lengths, *, c: ModelConfig, dtype):
    """prompts [N T] right-padded, lengths [N] → (their Cache for every band, the state after each [N D])."""
    prompts, lengths = by_rows((prompts, lengths))
    hidden, kept = forward(c, weights, prompts, lengths, keep_kv=True, dtype=dtype)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return caching.aligned(c, kept.kv, lengths), last


@partial(jax.jit, donate_argnames=("slots",))
def enter(slots: Slots, prompt_hidden, take, source, problem_ids, sample_ids, limits, key) -> Slots:
    """New samples in the slots with take[s]: prompt number source[s] of the shard; ids and limits [S]; key: its data."""
    take, source, problem_ids, sample_ids, limits = by_rows((take, source, problem_ids, sample_ids, limits))
    fresh = Slots(
        hidden=caching.gathered(prompt_hidden, source),
        keys=jax.random.key_data(sample_keys(jax.random.wrap_key_data(key), problem_ids, sample_ids)),
        index=jnp.zeros_like(slots.index),
        limit=limits,
        done=jnp.zeros_like(slots.done),
        stopped=jnp.zeros_like(slots.stopped),
    )
    return jax.tree.map(lambda new, old: jnp.where(take.reshape(-1, *[1] * (old.ndim - 1)), new, old), fresh, slots)


@partial(jax.jit, static_argnames=("how",), donate_argnames=("caches", "slots"))
def decode(weights: DecodeWeights, caches: list[Cache], slots: Slots, starts, now, at, how: Program):
    """W tokens for every slot: (caches, slots, tokens [S W], log-probs [S W]).

    starts [S]: the column in which a slot's sample begins, counted as `now` is, the column written next; at: where each band
    writes it. The caches are read only meanwhile: new columns gather in a small block of their own, which is written behind the
    others at the end.
    """
    starts = by_rows(starts)
    layout = bands(how.c)
    home = {layer: (b, n) for b, band in enumerate(layout) for n, layer in enumerate(band.layers)}
    column = [jnp.arange(cache.columns + how.steps) for cache in caches]
    held = [j < cache.columns for j, cache in zip(column, caches)]
    place = [now + jnp.where(old, j - spot, j - cache.columns) for j, old, spot, cache in zip(column, held, at, caches)]
    mine = [(p >= starts[:, None]) & (~old | (p < now)) for p, old in zip(place, held)]
    draw = jax.vmap(lambda k, j, logits: sample_token(jax.random.fold_in(jax.random.wrap_key_data(k), j), logits, how.sampling))

    def body(i, carry):
        slots, blocks, tokens, logprobs = carry
        logits = jnp.einsum("sd,vd->sv", slots.hidden, weights.output, preferred_element_type=jnp.float32)
        token, logp = draw(slots.keys, slots.index, logits)
        busy = ~slots.done
        ended = busy & jnp.isin(token, jnp.array(how.stop, jnp.int32))
        seen = [m & in_sight(now + i - p, band.window) for m, p, band in zip(mine, place, layout)]
        written = [Cache(list(b.keys), list(b.values)) for b in blocks]

        def attend(layer, q, k, v):
            b, n = home[layer]
            block, cache = written[b], caches[b]
            block.keys[n] = jax.lax.dynamic_update_slice_in_dim(block.keys[n], k[..., None], i, axis=3)
            block.values[n] = jax.lax.dynamic_update_slice_in_dim(block.values[n], v[:, :, None], i, axis=2)
            return decode_attention(q, (cache.keys[n], cache.values[n]), (block.keys[n], block.values[n]), seen[b])

        hidden = decode_step(how.c, weights, token, now + i - starts, attend, how.dtype)
        index = slots.index + busy
        tokens = tokens.at[:, i].set(jnp.where(busy, token, 0))
        logprobs = logprobs.at[:, i].set(jnp.where(busy, logp, 0.0))
        slots = slots.replace(hidden=hidden, index=index, done=slots.done | ended | (index >= slots.limit), stopped=slots.stopped | ended)
        return slots, written, tokens, logprobs

    blocks = [Cache([x[..., : how.steps] for x in cache.keys], [x[:, :, : how.steps] for x in cache.values]) for cache in caches]
    nothing = by_rows((jnp.zeros((len(starts), how.steps), jnp.int32), jnp.zeros((len(starts), how.steps), jnp.float32)))
    slots, blocks, *said = jax.lax.fori_loop(0, how.steps, body, (slots, blocks, *nothing))
    return list(map(caching.write, caches, blocks, at)), slots, *said


def in_sight(back, window: int | None):
    """Does a layer see what stands `back` columns behind the newest?"""
    return back >= 0 if window is None else (back >= 0) & (back < window)


@jax.jit
def chosen(tree, source):
    """The slots source [S'] of arrays [S …] alone."""
    return caching.gathered(tree, by_rows(source))


class Sampler:
    """One call's caches and slots on the device, and the steps that the host asks for. prompts [P T], lengths [P]."""

    def __init__(self, weights: Weights, prompts, lengths, responses: int, books: Books, how: Program, tally: Tally):
        self.weights, self.prompts, self.lengths = weights, prompts, lengths
        self.books, self.how, self.tally = books, how, tally
        with tally.phase("layout"):
            self.decoding = jax.block_until_ready(unstacked(how.c, weights, how.dtype))
        tally.layout_bytes = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(self.decoding))
        self.width = self.now = prompts.shape[1]
        self.bands = bands(how.c)
        self.ladder = caching.ladder(self.width, responses, how.steps)
        self.slots, self.caches, self.columns = self.room(books.seats.size, self.ladder[0])
        self.at = [min(self.now, band.window or self.now) for band in self.bands]
        # Problems are prefilled a share at a time, when the first of them is needed.
        self.share = min(-(-books.seats.shape[1] // books.group), books.mine)
        self.stores: dict[int, tuple] = {}

    def room(self, count: int, columns: int) -> tuple[Slots, list[Cache], int]:
        """(idle slots, empty caches, columns) for `count` slots."""
        c, dtype = self.how.c, self.how.dtype
        return idle(c, count, dtype), caching.empty(c, count, columns, self.how.steps, dtype), columns

    def store(self, number: int):
        """(Caches of N prompts, their last states [N D]) of each shard's problems number · share …, N = shards · share."""
        if number not in self.stores:
            q = self.books
            mine = np.minimum(np.arange(number * self.share, (number + 1) * self.share), q.mine - 1)
            rows = np.minimum(q.rows(mine), len(self.lengths) - 1).reshape(-1)
            with self.tally.phase("prefill"):
                made = prefill(self.weights, self.prompts[rows], self.lengths[rows], c=self.how.c, dtype=self.how.dtype)
                self.stores[number] = jax.block_until_ready(made)
            self.tally.prefilled += int(self.lengths[rows].sum())  # with the repetitions that fill up a share
        return self.stores[number]

    def enter(self, fresh: np.ndarray, key, problem_ids, sample_ids, limits) -> None:
        """Bring the new samples of the slots `fresh` [ways seats] to the device; the rest as in `generate`."""
        q = self.books
        problem, sample = q.seats // q.group, q.seats % q.group
        for number in np.unique(problem[fresh] // self.share):
            take = fresh & (problem // self.share == number)
            rows = np.where(take, q.rows(problem), 0)
            which = np.where(take, sample, 0)
            source = np.where(take, problem % self.share, 0).astype(np.int32)
            new = source, problem_ids[rows], sample_ids[rows, which], limits[rows, which]
            q.starts = np.where(take, self.now - self.lengths[rows], q.starts)
            self.admit(*self.store(int(number)), take.reshape(-1), *(x.reshape(-1) for x in new), key)
        first = min((seats[0] // q.group for seats in q.coming if seats), default=q.mine)
        self.stores = {n: stored for n, stored in self.stores.items() if (n + 1) * self.share > first}

    def admit(self, prompts, hidden, take, source, problem_ids, sample_ids, limits, key) -> None:
        """Arrays [S] but for the stored prompts, their states and the key: see cache.admit and enter."""
        with self.tally.phase("place"):
            self.caches = caching.admit(self.caches, prompts, take, source, self.at)
            self.slots = jax.block_until_ready(enter(self.slots, hidden, take, source, problem_ids, sample_ids, limits, key))

    def make_room(self) -> None:
        """Columns for a visit: those before the first start of a busy slot, or outside a window, are dropped, or there are more."""
        q, steps = self.books, self.how.steps
        with self.tally.phase("place"):
            if self.now + steps > self.columns:
                drop = int(q.starts[q.busy].min())
                if any(q.coming):
                    drop = min(drop, self.now - self.width)
                q.starts -= drop
                self.now -= drop
                self.columns = caching.following(self.columns, self.now, steps, self.ladder)
                self._resize([i for i, band in enumerate(self.bands) if band.window is None])
            sizes = [band.columns(self.columns, steps) for band in self.bands]
            tight = [self.caches[i].columns != size or self.at[i] + steps > size for i, size in enumerate(sizes)]
            self._resize([i for i, band in enumerate(self.bands) if band.window and tight[i]])
            jax.block_until_ready(self.caches)

    def _resize(self, which: list[int]) -> None:
        for i in which:
            band = self.bands[i]
            used = min(self.now, band.window or self.now)
            self.caches[i] = caching.resize(self.caches[i], self.at[i] - used, band.columns(self.columns, self.how.steps))
            self.at[i] = used

    def decode(self):
        """One visit, on the host: tokens and log-probs [S W], and of each slot its next index, whether it is done, and by a stop token."""
        q = self.books
        self.tally.cache_bytes = max(self.tally.cache_bytes, sum(x.nbytes for x in jax.tree.leaves(self.caches)))
        with self.tally.phase("decode"):
            starts = q.starts.reshape(-1).astype(np.int32)
            self.caches, self.slots, *said = decode(self.decoding, self.caches, self.slots, starts, self.now, self.at, self.how)
            said = jax.device_get(everywhere((*said, self.slots.index, self.slots.done, self.slots.stopped)))
        self.now += self.how.steps
        self.at = [spot + self.how.steps for spot in self.at]
        self.tally.decoded += self.how.steps * q.seats.size
        self.tally.visits += 1
        return said

    def compact(self, order: np.ndarray) -> None:
        with self.tally.phase("place"):
            source = order.reshape(-1).astype(np.int32)
            for cache in self.caches:  # array by array, each given up before the next
                for arrays in (cache.keys, cache.values):
                    for i, x in enumerate(arrays):
                        arrays[i] = chosen(x, source)
            self.slots = jax.block_until_ready(chosen(self.slots, source))


def generate(
    weights: Weights,
    prompts,
    prompt_lengths,
    key,
    problem_ids,
    sample_ids,
    *,
    c: ModelConfig,
    responses: int,
    sampling: Sampling,
    stop: tuple[int, ...],
    dtype=jnp.float32,
    slots: int = 0,
    limits=None,
    on_end=None,
) -> tuple[Rollouts, Tally]:
    """Sample G responses of at most R = `responses` tokens for each of P prompts, `slots` at a time (0: all).

    prompts [P T] right-padded, prompt_lengths [P], problem_ids [P], sample_ids [P G], on the host → Rollouts on the host. The token
    at response index j of a sample is drawn with key(key, problem id, sample id, j): it depends on neither its place nor its
    neighbours nor the number of slots. limits [P G]: of single samples, at most R. The current mesh says into how many shards
    problems and slots are split; every process of it calls this with the same arguments and gets the same Rollouts.
    on_end(p, g, tokens) is told of every sample as it ends.
    """
    problem_ids, sample_ids = np.asarray(problem_ids, np.uint32), np.asarray(sample_ids, np.uint32)
    p, g = sample_ids.shape
    limits = np.full((p, g), responses, np.int32) if limits is None else np.minimum(limits, responses).astype(np.int32)
    key = np.asarray(jax.random.key_data(key))
    books, tally = Books(p, g, rows_per_step(current_mesh()), slots), Tally()
    how = program(c, sampling, stop, responses, dtype)
    s = Sampler(weights, np.asarray(prompts, np.int32), np.asarray(prompt_lengths, np.int32), responses, books, how, tally)
    out = Rollouts(
        *(np.zeros((p, g, *more), t) for more, t in (((responses,), np.int32), ((), np.int32), ((responses,), np.float32), ((), bool)))
    )
    while True:
        fresh = books.seat()
        if fresh.any():
            s.enter(fresh, key, problem_ids, sample_ids, limits)
        if not books.busy.any():
            break
        safe_point()
        if (order := books.together()) is not None:
            s.compact(order)
        s.make_room()
        for where in books.write_down(out, *s.decode()):
            if on_end:
                on_end(*where, out.tokens[where][: out.lengths[where]])
    tally.generated = int(out.lengths.sum())
    return out, tally
