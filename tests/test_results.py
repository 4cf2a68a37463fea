import pytest

from antisd_jax.results import Curve, curve, markdown, speed_up, table

GRPO = Curve("grpo", {0: {"a": 0.2, "b": 0.0}, 10: {"a": 0.4, "b": 0.2}, 20: {"a": 0.5, "b": 0.3}, 30: {"a": 0.45, "b": 0.3}})
FAST = Curve("antisd", {0: {"a": 0.2, "b": 0.0}, 10: {"a": 0.6, "b": 0.2}, 20: {"a": 0.6, "b": 0.4}})
SLOW = Curve("sd", {0: {"a": 0.2, "b": 0.0}, 30: {"a": 0.3, "b": 0.1}})


def test_the_speed_up_is_the_best_step_over_the_first_that_reaches_it():
    """GRPO's best Average is 0.4, at step 20; AntiSD has 0.4 at step 10; SD never; GRPO itself is 1."""
    assert speed_up(FAST, GRPO) == pytest.approx(2.0) and speed_up(SLOW, GRPO) is None and speed_up(GRPO, GRPO) == 1.0
    assert speed_up(Curve("x", {0: {"a": 0.9, "b": 0.9}}), GRPO) == float("inf")


def test_the_table_by_hand():
    rows = table([GRPO, FAST, SLOW])
    assert rows == [
        ["run", "a", "b", "Average@best", "Average@last", "speed-up"],
        ["grpo", "50.0", "30.0", "40.0 @20", "37.5 @30", "1.00×"],
        ["antisd", "60.0", "40.0", "50.0 @20", "50.0 @20", "2.00×"],
        ["sd", "30.0", "10.0", "20.0 @30", "20.0 @30", "never"],
    ]
    assert markdown(rows).splitlines()[1] == "| --- | --: | --: | --: | --: | --: |"


def test_of_equal_averages_the_first_step_is_the_best():
    assert Curve("x", {0: {"a": 0.5}, 10: {"a": 0.5}}).best == 0


def test_a_curve_reads_the_averages_of_a_log_and_nothing_else():
    rows = [
        {"step": 0, "eval/average": 0.3, "eval/a/avg@4": 0.2, "eval/a/avg@4_low": 0.1, "eval/b/avg@32": 0.4, "eval/b/pass@4": 0.9},
        {"step": 1, "actor/entropy": 0.4},
    ]
    assert curve("x", rows).steps == {0: {"a": 0.2, "b": 0.4}}
