"""Whole runs: through the command line where a process must die, in this process elsewhere (on eight virtual devices)."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from html import escape

import jax
import numpy as np
import pytest
from browser import readable
from conftest import ROOT, SHARED
from safetensors.numpy import load_file, save_file

from antisd_jax import config
from antisd_jax.batching import arrange, buckets, padding
from antisd_jax.checkpoint import Checkpoints
from antisd_jax.errors import UserError
from antisd_jax.files import read_jsonl
from antisd_jax.learner import abstract_state
from antisd_jax.log import CLOCKED, lock_folder
from antisd_jax.model.parameters import abstract
from antisd_jax.model.settings import load_config
from antisd_jax.model.sharding import MeshConfig, make_mesh
from antisd_jax.tiny import HERE
from antisd_jax.tiny import tokenizer as tok
from antisd_jax.tiny.random_folder import make
from antisd_jax.train import train

SMOKE = str(ROOT / "configs" / "smoke.yaml")
SMALL = ["problems=8", "samples=4", "lengths.response=32", "optim.micro_tokens=1024", "eval.samples=2", "eval.limit=16", "log_rollouts=-1"]
SMALL += ["method.gate.warmup=2", "eval.every=2", "checkpoint.every=2"]


def small(output, *options, files=()):
    return config.load([SMOKE, *map(str, files)], [*SMALL, f"output={output}", *options])


def metrics(folder):
    """Everything that a clock does not decide."""
    return [{k: v for k, v in row.items() if not k.startswith(CLOCKED)} for row in read_jsonl(folder / "metrics.jsonl")]


def command(output, *options):
    flags = [f"--{o}" for o in (*SMALL, f"output={output}", *options)]
    return [sys.executable, "-m", "antisd_jax", "train", SMOKE, *flags]


def final_weights(folder, step):
    """The bytes of every array of a checkpoint."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    checkpoints = Checkpoints(folder / "checkpoints", config.Config().checkpoint)
    optim = config.load([SMOKE], SMALL).optim
    state, _ = checkpoints.restore(step, abstract_state(abstract(load_config(HERE / "model"), mesh), optim, mesh))
    checkpoints.close()
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(state)]


@pytest.mark.long
def test_killed_anywhere_and_run_again_equals_an_undisturbed_run(tmp_path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    subprocess.run(command(whole, "steps=5"), check=True, capture_output=True)
    expected = metrics(whole)
    assert [row["step"] for row in expected] == list(range(6))
    chance = random.Random(5)
    for reach in (1, 4):  # kill a random moment after the log first reaches this step
        process = subprocess.Popen(command(torn, "steps=5"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None and not any(r["step"] >= reach for r in read_jsonl(torn / "metrics.jsonl")):
            time.sleep(0.02)
        time.sleep(chance.random() * 0.5)
        process.kill()
        assert process.wait() == -signal.SIGKILL, process.stderr.read().decode()
    last = subprocess.run(command(torn, "steps=5"), check=True, capture_output=True, text=True)
    assert "resuming at step" in last.stdout
    assert metrics(torn) == expected
    assert read_jsonl(torn / "rollouts.jsonl") == read_jsonl(whole / "rollouts.jsonl")
    assert final_weights(torn, 5) == final_weights(whole, 5)


def test_another_configuration_in_the_folder_is_refused_and_more_steps_continue(tmp_path):
    train(small(tmp_path, "steps=2"))
    before = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "checkpoints").rglob("*"))
    with pytest.raises(UserError, match="seed: 0 → 1; optim.lr: 0.00015 → 0.001"):
        train(small(tmp_path, "steps=2", "optim.lr=1e-3", "seed=1"))
    assert sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "checkpoints").rglob("*")) == before
    train(small(tmp_path, "steps=3"))
    assert [row["step"] for row in metrics(tmp_path)] == [0, 1, 2, 3]


def test_a_checkpoint_and_the_log_hold_what_a_run_tells(tmp_path):
    c = small(tmp_path, "steps=3")
    train(c)
    record = json.loads((tmp_path / "checkpoints" / "3" / "record" / "metadata").read_text())
    assert record["cursor"] == 24 and record["step"] == 3 and record["config"] == config.digest(c)
    rows = metrics(tmp_path)
    assert record["gate"]["records"] == [rows[1]["antisd/gate/statistic"], rows[2]["antisd/gate/statistic"]]
    assert record["gate"]["level"] == rows[3]["antisd/gate/level"] == np.median(record["gate"]["records"])
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == [2, 3]
    logged = read_jsonl(tmp_path / "metrics.jsonl")[3]
    rollouts = [row for row in read_jsonl(tmp_path / "rollouts.jsonl") if row["step"] == 3]
    for name, prompt, budget in (("update", "prompt_tokens", c.lengths.prompt), ("teacher", "context_tokens", c.lengths.context)):
        lengths = [row[prompt] + row["response_tokens"] for row in rollouts]
        used = arrange(lengths, buckets(budget + c.lengths.response), c.optim.micro_tokens, 8)
        assert 0 < logged[f"perf/padding_{name}"] == padding(lengths, used) < 0.9


@pytest.mark.parametrize("method", sorted(p.stem for p in (ROOT / "configs" / "methods").glob("*.yaml")))
def test_every_method_trains(tmp_path, method):
    train(small(tmp_path, "steps=4", "eval.every=0", "method.gate.warmup=1", files=[ROOT / "configs" / "methods" / f"{method}.yaml"]))
    rows = metrics(tmp_path)
    assert len(rows) == 4
    assert all(np.isfinite(v) for row in rows for v in row.values())
    assert all(row["actor/grad_norm"] > 0 for row in rows)
    lam = [row["antisd/lambda"] for row in rows]
    ungated = ("sd", "sd_jsd", "antisd_no_gate", "antisd_no_teacher", "length_bonus")
    if method == "grpo" or method in ungated:
        assert lam == [0.0 if method == "grpo" else 0.5] * 4
    else:  # one step of warm-up, then λ_max wherever the statistic is not below its threshold
        h, level = [row["antisd/gate/statistic"] for row in rows], rows[1]["antisd/gate/level"]
        assert level == h[0] and lam[0] == 0.0
        seen = h[0] if method == "antisd_released" else h[1]
        opened = rows[1]["antisd/gate/down"] <= seen <= rows[1].get("antisd/gate/high", np.inf)
        if method == "antisd_released":  # a mean over responses
            assert 0 < lam[1] < 0.5 if opened else lam[1] == 0
        else:
            assert lam[1] == (0.5 if opened else 0.0)
    has_teacher = method not in ("grpo", "antisd_no_teacher", "length_bonus")
    assert ("antisd/teacher_entropy" in rows[0]) == has_teacher


def test_lambda_zero_trains_as_grpo_value_for_value(tmp_path):
    options = ("steps=2", "eval.every=0")
    train(small(tmp_path / "zero", *options, "method.lam_max=0"))
    train(small(tmp_path / "grpo", *options, files=[ROOT / "configs" / "methods" / "grpo.yaml"]))
    assert metrics(tmp_path / "zero") == metrics(tmp_path / "grpo")


def test_a_closed_student_gate_is_grpo_bit_for_bit(tmp_path):
    """The student's scoring pass feeds the gate and must not touch the ratio."""
    student_gate = ROOT / "configs" / "methods" / "antisd_student_gate.yaml"
    options = ("steps=2", "eval.every=0", "checkpoint.every=1")
    train(small(tmp_path / "gated", *options, "method.gate.warmup=2", files=[student_gate]))
    train(small(tmp_path / "grpo", *options, files=[ROOT / "configs" / "methods" / "grpo.yaml"]))
    assert final_weights(tmp_path / "gated", 2) == final_weights(tmp_path / "grpo", 2)


def test_any_number_of_evaluation_samples_fits_the_mesh(tmp_path):
    train(small(tmp_path, "steps=1", "eval.samples=10", "eval.limit=9"))
    row = metrics(tmp_path)[1]
    assert row["eval/countdown/problems"] == 9
    generations = [g for g in read_jsonl(tmp_path / "evaluations.jsonl") if g["step"] == 1]
    assert len(generations) == 9 * 10 and len({(g["id"], g["sample"]) for g in generations}) == 90
    assert np.mean([g["outcome"] == "correct" for g in generations]) == pytest.approx(row["eval/countdown/avg@10"])
    assert row["eval/average"] == row["eval/countdown/avg@10"]
    assert {f"eval/countdown/pass@{k}" for k in (1, 2, 4, 8, 10)} < set(row) and row["eval/countdown/pass@2"] <= row[
        "eval/countdown/pass@10"
    ]
    assert np.mean([g["finish_reason"] == "length" for g in generations]) == pytest.approx(row["eval/countdown/clip_ratio"])


def test_a_watched_failure_can_stop_the_run_with_a_checkpoint(tmp_path):
    options = ("eval.every=0", "steps=4", "checkpoint.every=0", "watchdog.capped=-1", "lengths.response=16")
    with pytest.raises(UserError, match="step 1: stopped by watchdog.stop, with a checkpoint: .* run to the length cap"):
        train(small(tmp_path, *options, "watchdog.stop=[capped]"))
    assert Checkpoints(tmp_path / "checkpoints", config.Config().checkpoint).latest() == 1
    with pytest.raises(UserError, match="step 1: stopped by watchdog.stop: .* Without capped in it the run goes on"):
        train(small(tmp_path, *options, "watchdog.stop=[capped]"))
    assert len(metrics(tmp_path)) == 1
    train(small(tmp_path, *options, "watchdog.stop=[]"))
    assert len(metrics(tmp_path)) == 4


def test_two_processes_cannot_share_a_folder(tmp_path):
    with lock_folder(tmp_path), pytest.raises(UserError, match="another process is running in"):
        train(small(tmp_path, "steps=1"))


def test_a_checkpoint_of_another_configuration_is_refused_without_its_log(tmp_path):
    train(small(tmp_path, "steps=1", "eval.every=0"))
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="holds a run of another configuration: seed: 0 → 1"):
        train(small(tmp_path, "steps=1", "eval.every=0", "seed=1"))
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(UserError, match="belongs to another configuration"):
        train(small(tmp_path, "steps=1", "eval.every=0", "seed=1"))


def test_several_updates_a_batch_and_dr_grpo_switches_train(tmp_path):
    train(small(tmp_path, "steps=2", "eval.every=0", "optim.minibatches=2", "optim.aggregation=constant", "method.normalise=false"))
    assert all(np.isfinite(row["actor/pg_loss"]) for row in metrics(tmp_path))


def test_sampler_and_trainer_agree_during_training(tmp_path):
    train(small(tmp_path, "steps=2", "eval.every=0", "sampling.temperature=0.7"))
    assert max(row["training/rollout_probs_diff_max"] for row in metrics(tmp_path)) < 1e-4


def test_bfloat16_activations_train(tmp_path):
    train(small(tmp_path, "steps=2", "eval.every=0", "model.dtype=bfloat16"))
    rows = metrics(tmp_path)
    assert all(np.isfinite(row["actor/pg_loss"]) for row in rows)
    assert 1e-5 < rows[0]["training/rollout_probs_diff_mean"] < 0.02


def test_a_folder_where_nothing_has_run_yet_may_change_its_mind(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        train(small(tmp_path, "steps=1", "eval.every=0", "model.path=/nowhere"))
    train(small(tmp_path, "steps=1", "eval.every=0"))
    assert len(metrics(tmp_path)) == 1


def test_what_a_run_leaves_behind(tmp_path, capsys):
    from antisd_jax.report.page import write_report

    train(small(tmp_path, "steps=2", "watchdog.capped=0.05"))
    warned = re.findall(r"warning: step (\d+): (.*) \[(\w+)\]", capsys.readouterr().err)
    rows = read_jsonl(tmp_path / "rollouts.jsonl")
    assert len(rows) == 2 * 32
    assert set(rows[0]) >= {"prompt", "response", "extracted", "outcome", "finish_reason", "response_tokens", "context_source", "u_mean"}
    names = set(metrics(tmp_path)[1]) | set(read_jsonl(tmp_path / "metrics.jsonl")[1])
    for name in (
        "actor/entropy actor/pg_loss actor/pg_clipfrac actor/grad_norm actor/lr critic/rewards/mean critic/advantages/mean"
        " response_length/mean response_length/clip_ratio timing_s/step timing_s/gen timing_s/reward timing_s/teacher"
        " timing_s/update_actor perf/throughput training/rollout_probs_diff_mean antisd/lambda antisd/gate/open"
    ).split():
        assert name in names
    assert list((tmp_path / "tensorboard").glob("events*"))
    page = write_report(tmp_path).read_text()
    assert warned and all(f"step {step}" in page and escape(sentence) in page and mode in page for step, sentence, mode in warned)
    assert page.count("<svg") == 6 and "Accuracy on held-out problems" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace("http://creativecommons.org", "")
    assert "<script" not in page and "<link" not in page and "src=" not in page
    readable(page, tmp_path)


def broken_model(tmp_path, edit):
    folder = tmp_path / "model"
    shutil.copytree(HERE / "model", folder)
    edit(folder)
    return f"model.path={folder}"


def put_nan(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = np.nan
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda f: shutil.rmtree(f), "does not exist"),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "chat_template.jinja").unlink(), "has no chat template"),
        (put_nan, "model.norm.weight holds 1 values that are NaN"),
        (lambda f: tok.save(tok.trained_tokenizer(["x"], 300), f), "token ids up to .* for a model with vocab_size"),
    ],
)
def test_a_broken_model_folder_is_one_clear_error_and_loses_nothing(tmp_path, edit, message):
    run = tmp_path / "run"
    with pytest.raises(UserError, match=message):
        train(small(run, broken_model(tmp_path, edit)))
    assert not any((run / "checkpoints").glob("[0-9]*"))


def test_an_output_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="output: .*file/run cannot be written: Not a directory"):
        train(small(tmp_path / "file" / "run"))


def test_nan_that_appears_in_training_stops_it_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    from antisd_jax import steps

    train(small(tmp_path, "steps=2", "eval.every=0"))
    monkeypatch.setattr(steps, "group_advantage", lambda rewards, normalise: rewards * np.nan)
    with pytest.raises(UserError, match="step 3: gradient or update of .* is not finite"):
        train(small(tmp_path, "steps=4", "eval.every=0"))
    assert Checkpoints(tmp_path / "checkpoints", config.Config().checkpoint).latest() == 2
    monkeypatch.undo()
    train(small(tmp_path, "steps=4", "eval.every=0"))
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2, 3, 4]


CORPUS = [
    {"problem": f"Ann has {a} pens and buys {b} more. How many has she?", "answer": str(a + b), "solution": f"{a} + {b} = {a + b}. " * 3}
    for a in range(2, 8)
    for b in range(3, 7)
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "pens.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in CORPUS))
    return path


SHIPPED = [
    ("qwen3_8b", "qwen3", "hybrid", "solution"),
    ("qwen3_4b_instruct_2507", "qwen3", "plain", "answer"),
    ("olmo3_7b_instruct", "olmo3", "plain", "feedback"),
    ("olmo3_7b_think", "olmo3", "think", "solution"),
    ("qwen3_30b_a3b", "qwen3_moe", "hybrid", "feedback"),
]


def test_every_shipped_model_is_listed_here():
    assert sorted(name for name, *_ in SHIPPED) == sorted(p.stem for p in (ROOT / "configs" / "models").glob("*.yaml"))


@pytest.mark.parametrize(
    "name, family, template, source", [SHIPPED[0], *(pytest.param(*case, marks=pytest.mark.long) for case in SHIPPED[1:])]
)
def test_every_shipped_model_config_trains_a_small_relative(tmp_path, corpus, name, family, template, source):
    """On real text, with each source of context, its own thinking mode, remat and dtype, on eight devices."""
    make(str(corpus), tmp_path / "model", vocab=400, width=32, family=family, template=template)
    options = [f"output={tmp_path / 'run'}", f"model.path={tmp_path / 'model'}", f"data.path={corpus}", "steps=3", "method.gate.warmup=2"]
    options += [f"eval.data={corpus}", "eval.every=3", "eval.limit=8", "eval.response=24", "eval.samples=2"]
    options += ["problems=8", "samples=2", "lengths.prompt=160", "lengths.context=768", "lengths.response=16", "optim.lr=1e-3"]
    options += ["data.overlaps=keep", f"prompt.sources=[sibling, {source}]", "mesh.expert=2" if family == "qwen3_moe" else "mesh.fsdp=2"]
    train(config.load([str(ROOT / "configs" / "models" / f"{name}.yaml")], options))
    rows = metrics(tmp_path / "run")[1:]
    assert [row[f"antisd/context/{source}"] + row["antisd/context/sibling"] for row in rows] == [1.0] * 3
    assert min(row[f"antisd/context/{source}"] for row in rows) > 0.5
    assert len(read_jsonl(tmp_path / "run" / "overlaps.jsonl")) == len(CORPUS)
    assert [row["antisd/context/acting"] for row in rows] == [1.0] * 3
    assert [row["antisd/gate/open"] for row in rows[:2]] == [1.0, 1.0] and rows[0]["antisd/lambda"] == 0.0
    assert "antisd/gate/level" in rows[2] and rows[2]["antisd/u_abs_mean"] > 0
    assert [("moe/load_max" in row) for row in rows] == [family == "qwen3_moe"] * 3
    assert rows[2][f"eval/{corpus.stem}/response_length"] > 16


def test_a_training_set_that_is_the_evaluation_set_is_refused(tmp_path, corpus):
    make(str(corpus), tmp_path / "model", vocab=400, width=32)
    options = [f"output={tmp_path / 'run'}", f"model.path={tmp_path / 'model'}", f"data.path={corpus}", f"eval.data={corpus}"]
    with pytest.raises(UserError, match="nothing of .* is left: 24 overlaps with evaluation; --data.overlaps=keep"):
        train(config.load([str(ROOT / "configs" / "math.yaml")], [*options, "problems=8"]))


@pytest.mark.long
@pytest.mark.skipif(not SHARED.exists(), reason="the shared problem files are not beside this checkout")
def test_real_problem_files_train_and_long_prompts_are_counted(tmp_path, capsys):
    data = SHARED / "train" / "gsm8k_train.jsonl"
    make(str(data), tmp_path / "model", vocab=600, width=32)
    options = [f"output={tmp_path / 'run'}", f"model.path={tmp_path / 'model'}", f"data.path={data}", "data.limit=400", "eval.every=0"]
    options += ["steps=2", "problems=8", "samples=2", "lengths.prompt=128", "lengths.response=16"]
    train(config.load([str(ROOT / "configs" / "math.yaml")], options))
    assert "of 400 problems skipped, their prompts are longer than lengths.prompt = 128 tokens" in capsys.readouterr().err
    assert len(metrics(tmp_path / "run")) == 2


def test_a_sampler_that_is_not_the_scorer_is_said_and_refused(tmp_path, capsys):
    train(small(tmp_path / "a", "steps=1", "eval.every=0"))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("sampler against scorer: |Δ log-prob| mean"))
    assert float(line.split("mean ")[1].split(",")[0]) < 1e-5
    with pytest.raises(UserError, match="sampler against scorer.*rollout.tolerance is 0.0"):
        train(small(tmp_path / "b", "steps=1", "eval.every=0", "rollout.tolerance=0.0"))
    assert metrics(tmp_path / "b") == []


def test_slots_do_not_change_a_run(tmp_path):
    """The same rollouts, token for token, with a quarter of the slots; and what the sampler did is in the metrics."""
    for name, slots in (("all", 0), ("few", 8)):
        train(small(tmp_path / name, "steps=1", "eval.every=0", f"rollout.slots={slots}"))
    a, b = (read_jsonl(tmp_path / name / "rollouts.jsonl") for name in ("all", "few"))
    assert [r["response"] for r in a] == [r["response"] for r in b]
    many, few = metrics(tmp_path / "all")[0], metrics(tmp_path / "few")[0]
    tokens = sum(r["response_tokens"] for r in a)
    for row in (many, few):
        assert row["rollout/wasted_tokens"] == pytest.approx(tokens / row["rollout/occupancy"] - tokens)
    assert few["rollout/cache_gib"] < many["rollout/cache_gib"] and few["rollout/visits"] > many["rollout/visits"]


def test_a_small_file_gives_a_repeated_problem_fresh_samples(tmp_path):
    """Fewer problems than a step takes: the same problem stands twice in a batch and must not repeat its rollouts."""
    train(small(tmp_path, "steps=1", "eval.every=0", "data.limit=3"))
    rows = read_jsonl(tmp_path / "rollouts.jsonl")
    by_problem = {}
    for row in rows:
        by_problem.setdefault(row["id"], []).append(row["response"])
    assert len(by_problem) == 3
    for responses in by_problem.values():
        groups = {tuple(responses[i : i + 4]) for i in range(0, len(responses), 4)}
        assert len(groups) == len(responses) // 4


def test_the_final_weights_can_be_restored_onto_another_mesh(tmp_path):
    c = small(tmp_path, "steps=2", "eval.every=0")
    train(c)
    model = load_config(HERE / "model")
    states = []
    for mesh in (make_mesh(MeshConfig(), jax.devices()[:1]), make_mesh(MeshConfig(2, 4))):
        checkpoints = Checkpoints(tmp_path / "checkpoints", c.checkpoint)
        states.append(checkpoints.restore(2, abstract_state(abstract(model, mesh), c.optim, mesh))[0])
        checkpoints.close()
    for a, b in zip(*map(jax.tree.leaves, states)):
        assert (np.asarray(a) == np.asarray(b)).all()
