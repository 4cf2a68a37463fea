from itertools import combinations

import numpy as np
import pytest

from antisd_jax.evaluate import bootstrap, majority, pass_at_k
from antisd_jax.rewards.grade import Grade


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_k_equals_exact_enumeration(n):
    counts = np.arange(n + 1)
    for k in range(1, n + 1):
        exact = [np.mean([any(i < c for i in drawn) for drawn in combinations(range(n), k)]) for c in counts]
        assert pass_at_k(n, counts, k) == pytest.approx(np.mean(exact))


def test_pass_at_one_is_the_average_and_large_n_does_not_overflow():
    assert pass_at_k(8, np.array([2, 8]), 1) == pytest.approx(0.625)
    assert pass_at_k(10_000, np.array([1]), 5_000) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "answers, expected",
    [
        ("7 7 8", 1.0),
        ("8 8 7", 0.0),
        ("8 7", 0.0),
        ("7 8", 1.0),
        ("8 9 \\text{7} $7$", 1.0),
        ("- - 7", 1.0),
        ("- -", 0.0),
    ],
)
def test_majority_by_hand(answers, expected):
    """7 is correct, - says nothing; of equally many the first given wins; layout does not count."""
    outcomes = {"7": "correct", "\\text{7}": "correct", "$7$": "correct"}
    grades = [Grade("unparsed") if a == "-" else Grade(outcomes.get(a, "wrong"), a) for a in answers.split()]
    assert majority(grades) == expected


def test_the_interval_holds_the_mean_and_shrinks_with_problems():
    rng = np.random.default_rng(1)
    few, many = rng.random(20), rng.random(2000)
    (a, b), (c, d) = bootstrap(few), bootstrap(many)
    assert a < few.mean() < b and c < many.mean() < d
    assert d - c == pytest.approx(2 * 1.96 * many.std() / 2000**0.5, rel=0.15)
    assert bootstrap(np.ones(5)) == (1.0, 1.0)
