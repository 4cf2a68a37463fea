"""Every program of a sampler, compiled ahead: for every number of columns and slots that a run can come to."""

from collections.abc import Iterator

import numpy as np

from antisd_jax.model.sharding import current_mesh, rows_per_step
from antisd_jax.rollout import cache as caching
from antisd_jax.rollout.books import COMPACT, Books, Tally
from antisd_jax.rollout.engine import Program, Sampler


def shapes(seats: int, prompt: int, responses: int, steps: int) -> list[tuple[int, int]]:
    """(slots of a shard, columns) of every decoding program."""
    return [(n, b) for n in _fewer(seats) for b in caching.ladder(prompt, responses, steps)]


def _fewer(seats: int) -> Iterator[int]:
    while True:
        yield seats
        if -(-seats // COMPACT) == seats:
            return
        seats = -(-seats // COMPACT)


def compile_all(weights, problems: int, group: int, prompt: int, responses: int, how: Program, slots: int) -> int:
    """Run each program once, on nothing; returns how many decoding programs there are.

    problems P, group G, prompt T, responses R and slots are as in a later call of `generate`, and how is `program` of its arguments.
    """
    books = Books(problems, group, rows_per_step(current_mesh()), slots)
    nobody, one = np.zeros((problems, prompt), np.int32), np.ones(problems, np.int32)
    s = Sampler(weights, nobody, one, responses, books, how, Tally())
    prompts, hidden = s.store(0)
    seats = books.seats.shape[1]
    programs = shapes(seats, prompt, responses, how.steps)
    for n, b in programs:
        count = books.ways * n
        books.seats, books.starts = np.full((books.ways, n), -1), np.zeros((books.ways, n), int)
        s.slots, s.caches, s.columns = s.room(count, b)
        s.now = prompt
        s.at = [min(prompt, band.window or prompt) for band in s.bands]
        if n == seats:
            idle = [np.zeros(count, t) for t in (np.int32, np.uint32, np.uint32, np.int32)]  # source, problem and sample ids, limits
            s.admit(prompts, hidden, np.zeros(count, bool), *idle, np.zeros(2, np.uint32))
        s.decode()
        rung = s.ladder.index(b)
        for other in s.ladder[max(rung - 1, 0) : rung + 2]:
            for band, cache in zip(s.bands, s.caches):  # of one layer: the others are alike
                caching.resized(cache.keys[0], 0, band.columns(other, how.steps), 3)
                caching.resized(cache.values[0], 0, band.columns(other, how.steps), 2)
        if -(-n // COMPACT) < n:
            s.compact(np.zeros((books.ways, -(-n // COMPACT)), int))
    return len(programs)
