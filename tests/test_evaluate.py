from itertools import combinations

import numpy as np
import pytest

from antisd_jax.evaluate import bootstrap, majority, metrics, pass_at_k, summarise
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


def test_the_interval_of_an_average_resamples_within_each_benchmark():
    """Against the normal approximation: the variance of a mean of means is the mean of the variances over B² problems each."""
    rng = np.random.default_rng(2)
    a, b = rng.random(900), 0.2 * rng.random(400)
    low, high = bootstrap(a, b)
    deviation = (a.var() / 900 + b.var() / 400) ** 0.5 / 2
    assert low < (a.mean() + b.mean()) / 2 < high
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.15)


def rows(outcomes: dict[int, str]):
    """index → one letter a sample: c correct, w wrong, p program that passes one of four cases."""
    names = {"c": ("correct", "7"), "w": ("wrong", "8"), "u": ("unparsed", None)}
    for index, letters in outcomes.items():
        for sample, letter in enumerate(letters):
            outcome, extracted = names[letter]
            reason = "length" if letter == "u" else "stop"
            row = {"id": f"p{index}", "index": index, "sample": sample, "outcome": outcome, "extracted": extracted}
            yield row | {"finish_reason": reason, "response_tokens": 10 * (index + 1)}


def test_a_result_by_hand():
    """Problem 0: 3 of 4, majority right. Problem 1: 1 of 4, majority wrong. Problem 2: none, two of them cut off."""
    found = summarise("x", 4, list(rows({1: "wwcw", 0: "ccwc", 2: "wuuw"}))[::-1])
    assert found.ids == ["p0", "p1", "p2"] and found.correct.tolist() == [3, 1, 0] and found.voted.tolist() == [1, 0, 0]
    assert found.clip_ratio == pytest.approx(2 / 12) and found.response_length == 20
    values = metrics([found])
    assert values["eval/average"] == values["eval/x/avg@4"] == pytest.approx(4 / 12)
    assert values["eval/x/maj@4"] == pytest.approx(1 / 3) and values["eval/x/pass@4"] == pytest.approx(2 / 3)
    assert values["eval/x/pass@2"] == pytest.approx((1 + 1 / 2 + 0) / 3)


def test_programs_have_a_share_of_cases_and_no_majority():
    graded = [row | {"passed": 1, "cases": 4} for row in rows({0: "wc"})]
    found = summarise("x", 2, graded)
    assert found.voted is None and found.cases == 0.25
    assert "eval/x/maj@2" not in metrics([found]) and metrics([found])["eval/x/cases"] == 0.25
