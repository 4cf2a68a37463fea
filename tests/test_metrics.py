"""The numbers of one step that are not there at every step."""

from types import SimpleNamespace

import numpy as np
import pytest

from antisd_jax.config import load
from antisd_jax.metrics import step_metrics
from antisd_jax.rewards.grade import Grade
from antisd_jax.text.prompt import Context
from antisd_jax.types import Rollouts, Scores

COMPLETED = "critic/rewards/completed_mean"
ACTING = {"antisd/teacher_entropy", "antisd/u_mean", "antisd/u_abs_mean"}


@pytest.mark.parametrize(
    "stopped, acts, words, absent",
    [
        (True, True, True, set()),
        (False, True, True, {COMPLETED}),
        (True, False, True, ACTING | {"antisd/term_mean"}),
        (True, True, False, {"antisd/term_mean"}),
    ],
)
def test_a_mean_over_nothing_is_left_out(stopped, acts, words, absent):
    """One problem, two rollouts of three tokens: none completed, none met a context, or no word that the term is about occurs."""
    rows = np.full((2, 3), -1.0, np.float32)
    rollouts = Rollouts(np.zeros((1, 2, 3), int), np.full((1, 2), 3), rows[None], np.full((1, 2), stopped))
    student, teacher, acting = Scores(rows, -rows), Scores(2 * rows, -rows), np.full(2, acts)
    grades, rewards = [[Grade("correct", "1"), Grade("wrong", "2")]], np.array([[1.0, 0.0]])
    weights, update = acting[:, None] * np.full((2, 3), words), SimpleNamespace(loss=0.0, clipped=0, grad_norm=1.0, load=None)
    found = step_metrics(
        load([], []), rollouts, grades, rewards, [Context([1], "sibling")] * 2, student, teacher, acting, weights, [update], 0.5, np.inf
    )
    keys = {COMPLETED, *ACTING, "antisd/term_mean"}
    assert keys - set(found) == absent and found["critic/rewards/mean"] == 0.5
    assert found.get(COMPLETED, 0.5) == 0.5 and found.get("antisd/u_mean", -1.0) == -1.0
