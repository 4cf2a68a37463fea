"""Dumps of steps, and the credit recomputed from them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from test_train import metrics, small

from antisd_jax.cli import main
from antisd_jax.config import load
from antisd_jax.dump import read_dump
from antisd_jax.errors import UserError
from antisd_jax.files import read_jsonl
from antisd_jax.replay import ReplayConfig, replay, statistics
from antisd_jax.train import train

METHODS = ROOT / "configs" / "methods"


@pytest.mark.parametrize("method", ["antisd_words", "antisd_released", "antisd_multiplicative", "length_bonus", "grpo"])
def test_a_method_replayed_on_its_own_run_gives_the_runs_own_numbers(tmp_path, method):
    options = (
        "steps=3",
        "eval.every=0",
        "method.gate.warmup=1",
        "dump_every=1",
        "optim.aggregation=sequence_mean",
        "optim.mask_truncated=true",
    )
    train(small(tmp_path, *options, files=[METHODS / f"{method}.yaml"]))
    logged = metrics(tmp_path)
    for step in (1, 2, 3):
        path = str(tmp_path / "dumps" / f"step-{step:06d}.npz")
        row = replay([path], ReplayConfig((str(METHODS / f"{method}.yaml"),), "run"))[0]
        assert row["advantage_mean"] == pytest.approx(logged[step - 1]["critic/advantages/mean"], abs=2e-6)
        assert row["pg_loss"] == pytest.approx(logged[step - 1]["actor/pg_loss"], abs=2e-6)
    if method == "antisd_released":  # λ of the log is the mean over responses
        dump, threshold = read_dump(tmp_path / "dumps" / "step-000003.npz"), logged[2]["antisd/gate/down"]
        n = dump.rollouts.lengths.reshape(-1)
        ppl = np.array([np.exp(-row[:k].astype(float).mean()) for row, k in zip(dump.teacher.logprobs, n)])
        each = np.where(ppl > 3, 0, np.clip(0.2 * np.log(np.clip(ppl / threshold, 0.5, 3)), 0, 0.5))
        assert logged[2]["antisd/lambda"] == pytest.approx(each.mean() * logged[2]["antisd/gate/open"], rel=1e-5)
    if method not in ("grpo", "length_bonus"):
        assert row["term_size"] > 0 or logged[2]["antisd/lambda"] == 0


def test_a_dump_holds_the_step(tmp_path):
    train(small(tmp_path, "steps=2", "eval.every=0", "dump_every=2"))
    assert [p.name for p in (tmp_path / "dumps").iterdir()] == ["step-000002.npz"]
    dump, rows = read_dump(tmp_path / "dumps" / "step-000002.npz"), [r for r in read_jsonl(tmp_path / "rollouts.jsonl") if r["step"] == 2]
    assert dump.rollouts.lengths.reshape(-1).tolist() == [r["response_tokens"] for r in rows]
    assert dump.rewards.reshape(-1).tolist() == [r["reward"] for r in rows] and dump.about["outcomes"] == [r["outcome"] for r in rows]
    assert dump.about["sources"] == [r["context_source"] for r in rows] and dump.about["ids"] == [r["id"] for r in rows[::4]]
    mask = np.arange(32) < dump.rollouts.lengths.reshape(-1, 1)
    u = np.where(mask, dump.teacher.logprobs - dump.student.logprobs, 0).sum(axis=1) / mask.sum(axis=1)
    assert np.allclose(u, [r["u_mean"] for r in rows], atol=1e-5)
    difference = np.abs(np.exp(dump.rollouts.logprobs.reshape(mask.shape)) - np.exp(dump.student.logprobs))[mask]
    assert difference.mean() == pytest.approx(metrics(tmp_path)[1]["training/rollout_probs_diff_mean"], rel=1e-5)
    with np.load(tmp_path / "dumps" / "step-000002.npz") as file:
        assert file["prompts"].size == file["prompt_lengths"].sum() and file["context_lengths"].tolist() == [
            r["context_tokens"] for r in rows
        ]


def test_methods_are_compared_on_the_same_rollouts(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    train(small(tmp_path, "steps=1", "eval.every=0", "dump_every=1"))
    path, methods = str(tmp_path / "dumps" / "step-000001.npz"), ("antisd_no_gate", str(METHODS / "sd_jsd.yaml"), "grpo")
    capsys.readouterr()
    assert main(["replay", path, f"--method={','.join(methods)}", f"--output={tmp_path / 'out.json'}"]) == 0
    assert "NaN" not in (tmp_path / "out.json").read_text()
    said = capsys.readouterr().out
    assert sum(line.startswith("| 1 | ") for line in said.splitlines()) == 3 and (tmp_path / "out.json").exists()
    anti, sd, grpo = replay([path], ReplayConfig(methods))
    assert anti["correlation"] == 1 and grpo["term_size"] == 0
    middle = (anti["advantage_mean"] + sd["advantage_mean"]) / 2
    assert middle == pytest.approx(grpo["advantage_mean"], abs=2e-6), "the two signs are mirror images around GRPO"
    half = replay([path], ReplayConfig(methods[:1], "0.25"))[0]
    assert half["term_size"] == pytest.approx(anti["term_size"] / 2, rel=1e-4)


def test_without_a_correct_rollout_there_is_no_mean_term_of_them(tmp_path):
    train(small(tmp_path, "steps=1", "eval.every=0", "dump_every=1"))
    dump = read_dump(tmp_path / "dumps" / "step-000001.npz")
    config, ones = load([], []), np.ones(dump.student.logprobs.shape)
    for reward, absent in ((0.0, "correct"), (1.0, "wrong")):
        row = statistics(replace(dump, rewards=np.full_like(dump.rewards, reward)), config, ones, ones, ones)
        assert {name for name in ("correct", "wrong") if np.isnan(row[f"term_mean_{name}"])} == {absent}


def test_what_cannot_be_replayed_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    train(small(tmp_path, "steps=1", "eval.every=0", "dump_every=1", files=[METHODS / "grpo.yaml"]))
    path = str(tmp_path / "dumps" / "step-000001.npz")
    (tmp_path / "no.npz").write_bytes(b"PK nothing")
    whole = Path(path).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flipped.npz").write_bytes(bytes(x ^ (0xFF if 60 < i < 90 else 0) for i, x in enumerate(whole)))
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    for name in ("cut", "flipped", "array"):
        with pytest.raises(UserError, match=f"{name}.npz is no dump of a step that can be read"):
            replay([str(tmp_path / f"{name}.npz")], ReplayConfig((str(METHODS / "grpo.yaml"),)))
    for paths, r, message in (
        ([path], ReplayConfig((str(METHODS / "antisd.yaml"),)), "method antisd needs a teacher's scores, and step 1 was dumped without"),
        ([path], ReplayConfig((str(METHODS / "grpo.yaml"),), "much"), "lam: got 'much', wanted auto, run or a number"),
        ([path], ReplayConfig((str(METHODS / "grpo.yaml"),), "nan"), "lam: got 'nan', wanted auto, run or a number"),
        (
            [path],
            ReplayConfig(("grpo", "antsid")),
            r"method: 'antsid' is neither a file nor a name of configs/methods \(did you mean 'antisd'",
        ),
        ([str(tmp_path / "no.npz")], ReplayConfig((str(METHODS / "grpo.yaml"),)), "is no dump of a step that can be read"),
        ([], ReplayConfig(), "takes dumps of steps"),
    ):
        with pytest.raises(UserError, match=message):
            replay(paths, r)
    train(small(tmp_path / "antisd", "steps=1", "eval.every=0", "dump_every=1"))
    with pytest.raises(UserError, match="antisd_released goes by its own warm-up"):
        replay([str(tmp_path / "antisd" / "dumps" / "step-000001.npz")], ReplayConfig((str(METHODS / "antisd_released.yaml"),)))
    released = str(METHODS / "antisd_released.yaml")
    train(small(tmp_path / "released", "steps=1", "eval.every=0", "dump_every=1", files=[released]))
    dumped = [str(tmp_path / "released" / "dumps" / "step-000001.npz")]
    assert replay(dumped, ReplayConfig((released,), "run"))[0]["term_size"] == 0, "λ is 0 during warm-up"
    with pytest.raises(UserError, match="antisd_released goes by its own warm-up"):
        replay(dumped, ReplayConfig((released,)))
