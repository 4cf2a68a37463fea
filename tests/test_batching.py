import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from antisd_jax.batching import Micro, arrange, buckets, padding, rungs


def test_buckets_are_few_and_end_with_the_longest():
    assert buckets(15) == [8, 16] and buckets(152) == [24, 40, 64, 80, 120, 152]
    assert buckets(18_432) == [2304, 4608, 6912, 9216, 13_824, 18_432]
    assert all(b[-1] >= n > b[-1] - 128 and len(b) <= 6 for n in range(1, 40_000, 37) for b in [buckets(n)])


def test_rungs_grow_by_a_half_and_a_third():
    assert rungs(64, 1) == [64] and rungs(64, 300) == [64, 96, 128, 192, 256, 384]
    sizes = rungs(64, 40_000)
    assert len(sizes) < 22 and max(b / a for a, b in zip(sizes, sizes[1:])) <= 1.5


@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=60), tokens=st.integers(1, 500), ways=st.sampled_from([1, 2, 4]))
def test_every_sequence_stands_in_one_micro_batch_that_holds_it(lengths, tokens, ways):
    micros = arrange(lengths, buckets(90), tokens, ways)
    rows = np.concatenate([m.rows for m in micros])
    assert sorted(rows[rows >= 0]) == list(range(len(lengths)))
    for m in micros:
        assert len(m.rows) % ways == 0 and max(lengths[i] for i in m.rows if i >= 0) <= m.length in buckets(90)
        assert len(m.rows) // ways * m.length <= max(tokens, m.length), "no more than the budget, but for a single row"
        shorter = [b for b in buckets(90) if b < m.length]
        assert not shorter or max(lengths[i] for i in m.rows if i >= 0) > shorter[-1]
    assert [m.length for m in micros] == sorted((m.length for m in micros), reverse=True)
    total = sum(m.rows.size * m.length for m in micros)
    assert padding(lengths, micros) == pytest.approx((total - sum(lengths)) / total)


def test_taking_and_putting_back():
    micro = Micro(np.array([2, -1, 0]), 2)
    x = np.arange(12.0).reshape(3, 4)
    assert micro.take(x).tolist() == [[8, 9], [0, 0], [0, 1]]
    assert micro.take(np.array([5, 6, 7]), int).tolist() == [7, 0, 5]
    out = np.zeros((3, 4))
    micro.put(out, micro.take(x))
    assert out.tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [8, 9, 0, 0]]
    assert micro.of(np.array([10, 11, 12])).rows.tolist() == [12, -1, 10]
