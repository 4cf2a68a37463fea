"""The host's side of the sampler: which sample is in which slot, what came out, and what it took. numpy alone.

Every process of a run keeps the same books from the same reports, so none of them has to ask another.
"""

import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from antisd_jax.types import Rollouts

COMPACT = 4  # busy slots are moved together when they fill no more than one in so many
PHASES = ("layout", "prefill", "place", "decode")


@dataclass
class Tally:
    """What a call of `generate` did. Tokens are response tokens but for the prefilled.

    seconds: by phase, of which timing_s/gen is made but for the host's own work: weights into decoding's layout, prefill, placing (admission, columns, moving together), decoding.
    """

    generated: int = 0
    decoded: int = 0  # slots × steps: with those that were thrown away
    prefilled: int = 0
    visits: int = 0
    cache_bytes: int = 0  # at its largest, over all devices
    layout_bytes: int = 0  # of a device's copy of the weights as decoding reads them
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))

    @contextmanager
    def phase(self, name: str):
        began = time.monotonic()
        yield
        self.seconds[name] += time.monotonic() - began

    def metrics(self) -> dict:
        """rollout/…, and timing_s/gen_… of the phases, which are parts of timing_s/gen."""
        return {
            "rollout/occupancy": self.generated / max(self.decoded, 1),
            "rollout/wasted_tokens": self.decoded - self.generated,
            "rollout/prefilled_tokens": self.prefilled,
            "rollout/visits": self.visits,
            "rollout/cache_gib": self.cache_bytes / 2**30,
            "rollout/layout_gib": self.layout_bytes / 2**30,
        } | {f"timing_s/gen_{name}": seconds for name, seconds in self.seconds.items()}


class Books:
    """Which sample is in which slot, and what is still to come. A shard has its own problems and slots: seats, starts [ways seats].

    slots: at least so many in all, as many in every shard; 0: one for every sample.
    """

    def __init__(self, problems: int, group: int, ways: int, slots: int):
        self.group, self.ways, self.mine = group, ways, -(-problems // ways)
        counts = [min(self.mine, max(problems - shard * self.mine, 0)) for shard in range(ways)]
        self.coming = [deque(range(n * group)) for n in counts]  # of each shard: problem · G + sample
        self.seats = np.full((ways, -(-slots // ways) or self.mine * group), -1)  # of each slot the same number, −1 when it is free
        self.starts = np.zeros(self.seats.shape, int)  # the first column of each slot's sample

    @property
    def busy(self) -> np.ndarray:
        return self.seats >= 0

    def seat(self) -> np.ndarray:
        """Fill free slots; [ways seats] True for the slots that got a new sample."""
        fresh = np.zeros(self.seats.shape, bool)
        for shard, free in np.argwhere(~self.busy):
            if self.coming[shard]:
                self.seats[shard, free] = self.coming[shard].popleft()
                fresh[shard, free] = True
        return fresh

    def where(self, shard: int, seat: int) -> tuple[int, int]:
        """(problem of the call, sample) of a number of a shard."""
        return shard * self.mine + seat // self.group, seat % self.group

    def rows(self, problem: np.ndarray) -> np.ndarray:
        """Of problems of each shard [ways …], their numbers in the call."""
        return np.arange(self.ways)[:, None] * self.mine + problem

    def together(self) -> np.ndarray | None:
        """When no more are coming and few slots are busy: the slots to keep [ways fewer], by shard, busy ones first. Else None."""
        size = self.seats.shape[1]
        fewer = -(-size // COMPACT)
        if fewer == size or any(self.coming) or self.busy.sum(axis=1).max() > fewer:
            return None
        order = np.argsort(~self.busy, axis=1, kind="stable")[:, :fewer]
        self.seats, self.starts = (np.take_along_axis(x, order, axis=1) for x in (self.seats, self.starts))
        return order

    def write_down(self, out: Rollouts, tokens, logprobs, index, done, stopped) -> list[tuple[int, int]]:
        """What a visit found, into the rollouts; (problem, sample) of those that ended, whose slots become free.

        tokens and logprobs [S W]; index, done and stopped [S], as they are after the visit.
        """
        ended = []
        for shard, seat in np.argwhere(self.busy):
            row = shard * self.seats.shape[1] + seat
            where = self.where(shard, self.seats[shard, seat])
            before, after = out.lengths[where], index[row]
            out.tokens[where][before:after] = tokens[row, : after - before]
            out.logprobs[where][before:after] = logprobs[row, : after - before]
            out.lengths[where], out.stopped[where] = after, stopped[row]
            if done[row]:
                self.seats[shard, seat] = -1
                ended.append(where)
        return ended
