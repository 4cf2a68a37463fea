"""The sampler: one prefill a problem, slots that are refilled as samples end, and a decode loop that stays on the device for
many tokens at a time.

The host knows which sample is in which slot. It fills free slots, lets the device decode STEPS tokens, and looks who has ended;
when no more are coming and most slots are free it moves those still busy together. On several devices each works through the
samples of its own problems, and nothing travels between them but for the tensor axis.

Shape letters: P problems, G samples a problem, S slots, T prompt tokens, R response tokens, D width, W tokens decoded a visit.
"""

import math
import time
from collections import deque
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
from antisd_jax.model.sharding import constrain, current_mesh, rows_per_step
from antisd_jax.rollout import cache as caches
from antisd_jax.rollout.cache import Cache
from antisd_jax.rollout.sampling import Sampling, sample_token
from antisd_jax.types import Rollouts

STEPS = 16  # tokens decoded between two visits of the host
COMPACT = 4  # busy slots are moved together when they fill no more than one in so many


@struct.dataclass
class Slots:
    """What the device knows of each slot."""

    hidden: Any  # [S D] the state that predicts the next token
    keys: Any  # [S] random keys of the samples
    index: Any  # [S] response index of the next token
    limit: Any  # [S] response tokens at most
    prompt: Any  # [S] prompt tokens
    start: Any  # [S] column of the first of them
    done: Any  # [S] nothing more is wanted of it
    stopped: Any  # [S] a stop token ended it


@dataclass
class Tally:
    """What a call of `generate` did. Tokens are response tokens but for the prefilled."""

    generated: int = 0
    decoded: int = 0  # slots × steps: with those that were thrown away
    prefilled: int = 0
    visits: int = 0
    cache_bytes: int = 0  # at its largest, over all devices
    layout_bytes: int = 0  # of a device's copy of the weights as decoding reads them
    layout_seconds: float = 0.0  # that making it took

    def metrics(self) -> dict:
        """rollout/…, and the part of timing_s/gen that brought the weights into decoding's layout."""
        return {
            "rollout/occupancy": self.generated / max(self.decoded, 1),
            "rollout/wasted_tokens": self.decoded - self.generated,
            "rollout/prefilled_tokens": self.prefilled,
            "rollout/visits": self.visits,
            "rollout/cache_gib": self.cache_bytes / 2**30,
            "rollout/layout_gib": self.layout_bytes / 2**30,
            "timing_s/layout": self.layout_seconds,
        }


def sample_keys(key, problem_ids, sample_ids):
    """[S] keys, one a sample: key(key, problem id, sample id)."""
    return jax.vmap(lambda p, s: jax.random.fold_in(jax.random.fold_in(key, p), s))(problem_ids, sample_ids)


@partial(jax.jit, static_argnames=("c", "dtype"))
def prefill(weights: Weights, prompts, lengths, *, c: ModelConfig, dtype):
    """prompts [P T] right-padded, lengths [P] → (their Cache, the state after each [P D])."""
    hidden, kept = forward(c, weights, prompts, lengths, keep_kv=True, dtype=dtype)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return caches.aligned(kept.kv, lengths), last


@jax.jit
def enter(slots: Slots, prompt_hidden, prompt_lengths, take, source, key, problem_ids, sample_ids, limits, now) -> Slots:
    """New samples in the slots with take[s]: prompt number source[s] of the shard; ids and limits [S]."""
    hidden, lengths = caches.gathered((prompt_hidden, prompt_lengths), source)
    fresh = Slots(
        hidden=hidden,
        keys=jax.random.key_data(sample_keys(key, problem_ids, sample_ids)),
        index=jnp.zeros_like(slots.index),
        limit=limits,
        prompt=lengths,
        start=now - lengths,
        done=jnp.zeros_like(slots.done),
        stopped=jnp.zeros_like(slots.stopped),
    )
    return jax.tree.map(lambda new, old: jnp.where(take.reshape(-1, *[1] * (old.ndim - 1)), new, old), fresh, slots)


@partial(jax.jit, static_argnames=("c", "sampling", "stop", "steps", "dtype"), donate_argnames=("cache", "slots"))
def decode(
    weights: DecodeWeights,
    cache: Cache,
    slots: Slots,
    now,
    *,
    c: ModelConfig,
    sampling: Sampling,
    stop: tuple[int, ...],
    steps: int,
    dtype,
):
    """At most W = `steps` tokens for every slot: (cache, slots, tokens [S W], log-probs [S W], steps made).

    The cache is read only meanwhile: new columns gather in a small block of their own, which is written behind the others at the
    end. It ends early when every slot is done.
    """
    s = slots.hidden.shape[0]
    b = cache.keys[0].shape[3]
    column = jnp.arange(b + steps)
    place = jnp.where(column < b, column, now + column - b)  # where a column of the block will stand
    mine = (place >= slots.start[:, None]) & ((column >= b) | (column < now))
    draw = jax.vmap(lambda k, j, logits: sample_token(jax.random.fold_in(jax.random.wrap_key_data(k), j), logits, sampling))
    block = Cache([x[..., :steps] for x in cache.keys], [x[:, :, :steps] for x in cache.values])

    def unfinished(carry):
        return (carry[0] < steps) & ~jnp.all(carry[1].done)

    def body(carry):
        i, slots, block, tokens, logprobs = carry
        logits = jnp.einsum("sd,vd->sv", slots.hidden, weights.output, preferred_element_type=jnp.float32)
        token, logp = draw(slots.keys, slots.index, logits)
        busy = ~slots.done
        ended = busy & jnp.isin(token, jnp.array(stop, jnp.int32))
        seen = mine & (place <= now + i)

        def attend(layer, kind, q, k, v):
            keys = jax.lax.dynamic_update_slice_in_dim(block.keys[layer], k[..., None], i, axis=3)
            values = jax.lax.dynamic_update_slice_in_dim(block.values[layer], v[:, :, None], i, axis=2)
            near = seen if kind.window is None else seen & (now + i - place < kind.window)
            return decode_attention(q, (cache.keys[layer], cache.values[layer]), (keys, values), near), (keys, values)

        hidden, kept = decode_step(c, weights, token, slots.prompt + slots.index, attend, dtype)
        index = slots.index + busy
        tokens = tokens.at[:, i].set(jnp.where(busy, token, 0))
        logprobs = logprobs.at[:, i].set(jnp.where(busy, logp, 0.0))
        slots = slots.replace(hidden=hidden, index=index, done=slots.done | ended | (index >= slots.limit), stopped=slots.stopped | ended)
        return i + 1, slots, Cache(*map(list, zip(*kept))), tokens, logprobs

    nothing = jnp.zeros((s, steps), jnp.int32), jnp.zeros((s, steps), jnp.float32)
    made, slots, block, tokens, logprobs = jax.lax.while_loop(unfinished, body, (jnp.int32(0), slots, block, *nothing))
    return caches.write(cache, block, now), slots, tokens, logprobs, made


@partial(jax.jit, donate_argnames=("slots",))
def compact(cache: Cache, slots: Slots, source) -> tuple[Cache, Slots]:
    """The slots source [S'] alone."""
    return caches.gathered(cache, source), caches.gathered(slots, source)


class Books:
    """The host's books: which sample is in which slot, and what is still to come. A shard has its own problems and slots."""

    def __init__(self, problems: int, group: int, ways: int, slots: int):
        self.group, self.ways, self.mine = group, ways, -(-problems // ways)
        counts = [min(self.mine, max(problems - shard * self.mine, 0)) for shard in range(ways)]
        self.coming = [deque(range(n * group)) for n in counts]  # of each shard: problem · G + sample
        self.seats = np.full((ways, slots // ways), -1)  # of each slot the same number, −1 when it is free

    @property
    def busy(self) -> np.ndarray:
        return self.seats >= 0

    def seat(self) -> np.ndarray:
        """Fill free slots; True for the slots that got a new sample."""
        fresh = np.zeros(self.seats.shape, bool)
        for shard, free in np.argwhere(~self.busy):
            if self.coming[shard]:
                self.seats[shard, free] = self.coming[shard].popleft()
                fresh[shard, free] = True
        return fresh

    def where(self, shard: int, seat: int) -> tuple[int, int]:
        """(problem of the call, sample) of a number of a shard."""
        return shard * self.mine + seat // self.group, seat % self.group

    def together(self) -> np.ndarray | None:
        """When no more are coming and few slots are busy: the slots to keep, by shard, busy ones first. Else None."""
        size = self.seats.shape[1]
        fewer = -(-size // COMPACT)
        if fewer == size or any(self.coming) or self.busy.sum(axis=1).max() > fewer:
            return None
        order = np.argsort(~self.busy, axis=1, kind="stable")[:, :fewer]
        self.seats = np.take_along_axis(self.seats, order, axis=1)
        return order


class Sampler:
    """One call's cache and slots on the device, and the steps that the host asks for."""

    def __init__(self, weights: Weights, prompts, lengths, c: ModelConfig, books: Books, dtype, tally: Tally):
        self.weights, self.prompts, self.lengths = weights, prompts, lengths
        self.c, self.books, self.dtype, self.tally = c, books, dtype, tally
        began = time.monotonic()
        self.decoding = jax.block_until_ready(unstacked(c, weights, dtype))
        tally.layout_seconds = time.monotonic() - began
        tally.layout_bytes = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(self.decoding))
        slots, width = books.seats.size, prompts.shape[1]
        self.now = width
        self.cache = caches.empty(c, slots, caches.columns(width + STEPS), dtype)
        zero = jnp.zeros(slots, jnp.int32)
        hidden = jnp.zeros((slots, c.width), dtype)
        keys = jnp.zeros((slots, 2), jnp.uint32)
        state = Slots(hidden, keys, zero, zero, zero, zero, jnp.ones(slots, bool), jnp.zeros(slots, bool))
        self.slots = jax.tree.map(_by_rows, state)
        # Problems are prefilled a share at a time, when the first of them is needed.
        self.share = -(-books.seats.shape[1] // books.group)
        self.stores: dict[int, tuple] = {}

    def store(self, number: int):
        """The prompts of each shard's problems number · share …, with their last states and lengths."""
        if number not in self.stores:
            q = self.books
            chosen = np.minimum(np.arange(number * self.share, (number + 1) * self.share), q.mine - 1)
            rows = np.minimum(np.arange(q.ways)[:, None] * q.mine + chosen, len(self.lengths) - 1).reshape(-1)
            prompts, lengths = map(_by_rows, (self.prompts[rows], self.lengths[rows]))
            self.stores[number] = (*prefill(self.weights, prompts, lengths, c=self.c, dtype=self.dtype), lengths)
            self.tally.prefilled += int(self.lengths[rows].sum())  # with the repetitions that fill up a share
        return self.stores[number]

    def enter(self, fresh: np.ndarray, key, problem_ids, sample_ids, limits) -> None:
        """Bring the new samples of the slots `fresh` to the device."""
        q = self.books
        problem, sample = q.seats // q.group, q.seats % q.group
        for number in np.unique(problem[fresh] // self.share):
            take = fresh & (problem // self.share == number)
            rows = np.where(take, np.arange(q.ways)[:, None] * q.mine + problem, 0)
            which = np.where(take, sample, 0)
            ids = problem_ids[rows].reshape(-1), sample_ids[rows, which].reshape(-1), limits[rows, which].reshape(-1)
            prompts, hidden, lengths = self.store(int(number))
            source = np.where(take, problem % self.share, 0).reshape(-1).astype(np.int32)
            take, source, *ids = map(_by_rows, (take.reshape(-1), source, *ids))
            self.cache = caches.admit(self.cache, prompts, take, source, self.now)
            self.slots = enter(self.slots, hidden, lengths, take, source, key, *ids, self.now)
        first = min((seats[0] // q.group for seats in q.coming if seats), default=q.mine)
        self.stores = {n: stored for n, stored in self.stores.items() if (n + 1) * self.share > first}

    def make_room(self, steps: int) -> None:
        """Columns for `steps` more tokens: those before the first start of a busy slot are dropped, or there are more of them."""
        b = self.cache.keys[0].shape[3]
        if self.now + steps <= b:
            return
        drop = int(np.asarray(self.slots.start).reshape(self.books.seats.shape)[self.books.busy].min())
        if any(self.books.coming):
            drop = min(drop, self.now - self.prompts.shape[1])
        used = self.now - drop
        b = caches.columns(used + max(steps, used // 4))
        self.cache = caches.resize(self.cache, drop, b)
        self.slots = self.slots.replace(start=self.slots.start - drop)
        self.now -= drop

    def decode(self, **how):
        """One visit: tokens and log-probs [S W], and of each slot its next index, whether it is done, and whether by a stop token."""
        self.tally.cache_bytes = max(self.tally.cache_bytes, sum(x.nbytes for x in jax.tree.leaves(self.cache)))
        self.cache, self.slots, *said, made = decode(self.decoding, self.cache, self.slots, self.now, c=self.c, dtype=self.dtype, **how)
        *said, made = jax.device_get((*said, self.slots.index, self.slots.done, self.slots.stopped, made))
        self.now += int(made)
        self.tally.decoded += int(made) * self.books.seats.size
        self.tally.visits += 1
        return said

    def compact(self, order: np.ndarray) -> None:
        self.cache, self.slots = compact(self.cache, self.slots, _by_rows(order.reshape(-1).astype(np.int32)))


def _by_rows(x):
    return constrain(jnp.asarray(x), "rows", *[None] * (np.ndim(x) - 1))


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
    neighbours nor the number of slots. limits [P G]: of single samples, at most R. The current
    mesh says into how many shards problems and slots are split.
    on_end(p, g, tokens) is told of every sample as it ends.
    """
    prompts, prompt_lengths = np.asarray(prompts), np.asarray(prompt_lengths)
    problem_ids, sample_ids = np.asarray(problem_ids), np.asarray(sample_ids)
    p, g = sample_ids.shape
    ways = rows_per_step(current_mesh())
    limits = np.full((p, g), responses, np.int32) if limits is None else np.minimum(limits, responses).astype(np.int32)
    books = Books(p, g, ways, -(-slots // ways) * ways or -(-p // ways) * ways * g)
    tally = Tally()
    s = Sampler(weights, prompts, prompt_lengths, c, books, dtype, tally)
    out = Rollouts(
        *(np.zeros((p, g, *more), t) for more, t in (((responses,), np.int32), ((), np.int32), ((responses,), np.float32), ((), bool)))
    )
    steps = min(STEPS, responses)
    while True:
        fresh = books.seat()
        if fresh.any():
            s.enter(fresh, key, problem_ids, sample_ids, limits)
        if not books.busy.any():
            break
        if (order := books.together()) is not None:
            s.compact(order)
        s.make_room(steps)
        said = s.decode(sampling=sampling, stop=stop, steps=steps)
        for where in write_down(books, out, *said):
            if on_end:
                on_end(*where, out.tokens[where][: out.lengths[where]])
    tally.generated = int(out.lengths.sum())
    return out, tally


def write_down(books: Books, out: Rollouts, tokens, logprobs, index, done, stopped) -> list[tuple[int, int]]:
    """What a visit found, into the rollouts; (problem, sample) of those that ended, whose slots become free."""
    ended = []
    for shard, seat in np.argwhere(books.busy):
        row = shard * books.seats.shape[1] + seat
        where = books.where(shard, books.seats[shard, seat])
        before, after = out.lengths[where], index[row]
        out.tokens[where][before:after] = tokens[row, : after - before]
        out.logprobs[where][before:after] = logprobs[row, : after - before]
        out.lengths[where], out.stopped[where] = after, stopped[row]
        if done[row]:
            books.seats[shard, seat] = -1
            ended.append(where)
    return ended
