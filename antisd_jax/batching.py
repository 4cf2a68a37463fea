"""Sequences of many lengths in few shapes. numpy alone.

Sequences are sorted by length. As many as a budget of tokens allows make a micro-batch, whose rows have the length of the
smallest bucket that holds the longest of them. Where there are more sequences than the budget holds, every micro-batch costs about
the same (but for attention), whatever it holds, so that taking the longest first gives the fewest of them.
"""

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)  # bucket lengths, as shares of the longest


@dataclass(frozen=True)
class Micro:
    """rows: [B] numbers of its sequences among N, −1 where a row only fills up. length: T."""

    rows: np.ndarray
    length: int

    def of(self, part: np.ndarray) -> "Micro":
        """The same, where the sequences are themselves a part of others: part [N] holds their numbers there."""
        return Micro(np.where(self.rows >= 0, part[self.rows], -1), self.length)

    def take(self, x: np.ndarray, dtype=np.float32) -> np.ndarray:
        """[N …] → [B …], 0 in rows that only fill up; of response tokens [N R] the first T."""
        x = x[:, : self.length] if x.ndim > 1 else x
        real = (self.rows >= 0).reshape(-1, *[1] * (x.ndim - 1))
        return np.where(real, x[self.rows], 0).astype(dtype)

    def put(self, out: np.ndarray, x: np.ndarray) -> None:
        """The other way: [B R'] into out [N R]."""
        real = self.rows >= 0
        out[self.rows[real], : x.shape[1]] = x[real]


def buckets(most: int) -> list[int]:
    """Lengths from short to `most`, in whole lanes."""
    lane = 128 if most >= 1024 else 8
    return sorted({-(-int(most * share) // lane) * lane for share in SHARES} | {-(-most // lane) * lane})


def rungs(least: int, most: int) -> list[int]:
    """least · 1, 1½, 2, 3, 4, 6, … up to the first that is at least `most`; least is a power of two."""
    sizes = [least]
    while sizes[-1] < most:
        size = sizes[-1]
        sizes.append(size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4)
    return sizes


def arrange(lengths, sizes: list[int], tokens: int, ways: int) -> list[Micro]:
    """N sequence lengths → micro-batches of rows as long as one of `sizes`, which ascend: of about `tokens` tokens in each of `ways`
    shards of rows, and at least a row."""
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    whole = -(-len(lengths) // ways)
    out, at = [], 0
    while at < len(order):
        length = sizes[bisect_left(sizes, int(lengths[order[at]]))]
        count = min(max(tokens // length, 1), whole) * ways
        rows = order[at : at + count]
        out.append(Micro(np.pad(rows, (0, count - len(rows)), constant_values=-1), length))
        at += count
    return out


def padding(lengths, micros: list[Micro]) -> float:
    """Share of the micro-batches' tokens that belongs to no sequence."""
    return 1.0 - float(np.sum(lengths)) / sum(m.rows.size * m.length for m in micros)
