"""The driver that samples one step ahead."""

import jax
import numpy as np
import pytest
from test_processes import Impatient, weights_of
from test_train import SMALL, SMOKE, metrics, small

from antisd_jax import ahead, config, processes, train
from antisd_jax.arrays import as_text, from_text
from antisd_jax.errors import UserError
from antisd_jax.files import read_jsonl
from antisd_jax.metrics import correction_metrics
from antisd_jax.types import Rollouts, Scores

AHEAD = ("rollout.ahead=true", "optim.importance_cap=2")


def test_a_step_learns_from_what_the_weights_one_update_before_it_sampled(tmp_path, monkeypatch):
    """The first two steps' rollouts are those of the first weights: the first the same as a plain run's, the second not."""
    sampled, real = [], train.roll_out

    def spying(policy, weights, problems, *rest):
        out = real(policy, weights, problems, *rest)
        sampled.append((np.asarray(weights.embedding).tobytes(), [p.id for p in problems], out[0]))
        return out

    monkeypatch.setattr(train, "roll_out", spying)
    options = ("steps=3", "eval.every=0", "optim.lr=1e-3")
    train.train(small(tmp_path / "plain", *options, "optim.importance_cap=2"))
    plain, sampled[:] = list(sampled), []
    train.train(small(tmp_path / "ahead", *options, *AHEAD))
    assert [ids for _, ids, _ in sampled] == [ids for _, ids, _ in plain] and len(sampled) == 3
    assert sampled[0][0] == sampled[1][0] == plain[0][0] != plain[1][0] and sampled[1][0] != sampled[2][0]
    assert (sampled[0][2].tokens == plain[0][2].tokens).all() and (sampled[1][2].tokens != plain[1][2].tokens).any()
    rows = metrics(tmp_path / "ahead")
    assert [row["rollout/staleness"] for row in rows] == [0, 1, 1]
    assert rows[0]["rollout_corr/rollout_is_max"] == rows[0]["rollout_corr/rollout_is_min"] == 1.0
    assert (
        rows[1]["rollout_corr/rollout_is_max"] > 1.01 > rows[1]["rollout_corr/rollout_is_eff_sample_size"]
        and rows[1]["rollout_corr/k3_kl"] > 1e-4
    )
    assert {row["rollout/staleness"] for row in metrics(tmp_path / "plain")} == {0}


@pytest.mark.long
def test_torn_anywhere_it_ends_as_if_it_never_was(tmp_path, monkeypatch):
    options = ("steps=4", "eval.every=2", *AHEAD)
    train.train(small(tmp_path / "whole", *options))
    monkeypatch.setattr(processes, "_here", Impatient())
    attempts = 0
    while attempts < 60 and len(metrics(tmp_path / "torn")) < 5:
        attempts += 1
        processes._here.stop = 5 + 2 * attempts
        try:
            train.train(small(tmp_path / "torn", *options))
        except processes.Preempted:
            continue
    assert attempts > 4 and metrics(tmp_path / "torn") == metrics(tmp_path / "whole")
    assert read_jsonl(tmp_path / "torn" / "rollouts.jsonl") == read_jsonl(tmp_path / "whole" / "rollouts.jsonl")
    ends = [jax.tree.leaves(weights_of(tmp_path / name, 4)[0]) for name in ("whole", "torn")]
    assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(*ends))


def test_grading_goes_on_while_the_next_rollouts_are_sampled(tmp_path, monkeypatch):
    """All of a step's answers are at the graders before the next one is sampled, and none is waited for until then."""
    told, real = [], train.sample
    monkeypatch.setattr(ahead, "sample", lambda run, at, step: told.append(("sample", step)) or real(run, at, step))
    verdicts = train.Grading.verdicts
    monkeypatch.setattr(
        train.Grading, "verdicts", lambda g: told.append(("wait", all(f is not None for f in g.asked.values()))) or verdicts(g)
    )
    train.train(small(tmp_path, "steps=3", "eval.every=0", *AHEAD))
    assert told == [("sample", 1), ("sample", 2), ("wait", True), ("sample", 3), ("wait", True), ("wait", True)]


def test_without_a_correction_it_is_refused_and_folders_are_not_mixed(tmp_path):
    with pytest.raises(UserError, match="optim.importance_cap: got 0.0, wanted above 0"):
        config.load([SMOKE], [*SMALL, "rollout.ahead=true"])
    train.train(small(tmp_path, "steps=2", "eval.every=0", "optim.importance_cap=2"))
    with pytest.raises(UserError, match="rollout.ahead: False → True"):
        train.train(small(tmp_path, "steps=2", "eval.every=0", *AHEAD))


def test_correction_metrics_by_hand():
    tokens = np.zeros((1, 2, 2), np.int32)
    sampled = np.array([[[-1.0, -2.0], [-1.0, -9.0]]], np.float32)
    rollouts = Rollouts(tokens, np.array([[2, 1]]), sampled, np.ones((1, 2), bool))
    student = Scores(np.array([[-1.0, -1.0], [-2.0, -3.0]], np.float32), np.zeros((2, 2)))
    d = np.array([0.0, 1.0, -1.0])
    w = np.array([1.0, 2.0, np.exp(-1)])
    got = correction_metrics(rollouts, student, 2.0)
    wanted = dict(kl=0.0, k3_kl=(np.exp(d) - 1 - d).mean(), rollout_is_mean=w.mean(), rollout_is_min=w[2], rollout_is_max=2.0)
    wanted |= dict(rollout_is_truncated=1 / 3, rollout_is_eff_sample_size=w.sum() ** 2 / (3 * (w**2).sum()))
    assert got == {f"rollout_corr/{k}": pytest.approx(v, rel=1e-6, abs=1e-9) for k, v in wanted.items()}


@pytest.mark.parametrize("dtype", ["int32", "float32", "bool"])
def test_arrays_come_back_from_text_bit_for_bit(dtype):
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(dtype)
    back = from_text(as_text(x))
    assert back.dtype == x.dtype and back.shape == x.shape and back.tobytes() == x.tobytes()
