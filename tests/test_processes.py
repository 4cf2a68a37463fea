"""Several processes, and every way to be stopped: runs that go on must end as if nothing had happened."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import traceback

import jax
import numpy as np
import pytest
from conftest import ROOT
from test_train import SMALL, SMOKE, metrics, small

from antisd_jax import config, processes
from antisd_jax.checkpoint import Checkpoints
from antisd_jax.errors import UserError
from antisd_jax.files import read_jsonl
from antisd_jax.learner import abstract_state
from antisd_jax.model.parameters import abstract
from antisd_jax.model.settings import load_config
from antisd_jax.model.sharding import MeshConfig, make_mesh
from antisd_jax.text.data import Order
from antisd_jax.tiny import HERE
from antisd_jax.train import train


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def ended(started: list[subprocess.Popen], seconds: float) -> list[tuple[int, str]]:
    """(exit status, all output) of each, none of which is left."""
    end, out = time.monotonic() + seconds, []
    try:
        for p in started:
            said = p.communicate(timeout=max(end - time.monotonic(), 0.1))[0]
            out.append((p.returncode, said))
    finally:
        for p in started:
            p.kill()
    return out


def watched(what: str, wait=(0, 1)):
    """What became of two processes, after `what` happened to the second; only those in `wait` are waited for."""
    port = free_port()
    command = [sys.executable, str(ROOT / "tests" / "process_watch.py"), str(port)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    how = dict(env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    started = [subprocess.Popen([*command, str(n), what], **how) for n in range(2)]
    try:
        return ended([started[n] for n in wait], 90)
    finally:
        for p in started:
            p.kill()
            p.wait()


def test_processes_meet_share_and_leave_together():
    (status, first), (other, second) = watched("end")
    assert (status, other) == (0, 0), first + second
    assert "met [[0, 'ü'], [1, 'ü']] [10] True" in first and "met [[0, 'ü'], [1, 'ü']] [11, 12] False" in second
    assert "left together" in first and "left together" in second


def test_who_asks_one_process_to_stop_stops_all_at_the_same_point():
    (status, first), (other, second) = watched("TERM")
    assert (status, other) == (0, 0), first + second
    line = next(line for line in first.splitlines() if "asked to stop" in line)
    assert line in second and len(set(json.loads(line.partition(" at ")[2]))) == 1


@pytest.mark.parametrize("what, reason", [("fail", "no room on the disk"), ("break", "KeyError: 'a fault of ours'")])
def test_one_that_fails_tells_the_others_why(what, reason):
    (status, first), (other, second) = watched(what)
    assert status not in (0, -signal.SIGKILL) and other == (2 if what == "fail" else 1), first + second
    assert f"error: process 1 on {socket.gethostname()} has ended: {reason}" in first and f"error: {reason}" in second


@pytest.mark.parametrize("what", ["STOP", "KILL"])
def test_one_that_is_silent_is_named_by_the_others(what):
    began = time.monotonic()
    ((status, first),) = watched(what, wait=(0,))
    assert status == 1 and f"error: process 1 on {socket.gethostname()} has given no sign of life for 10 s" in first, first
    assert time.monotonic() - began < 60


def test_a_coordinator_that_is_gone_is_named_before_jax_aborts():
    began = time.monotonic()
    ((status, second),) = watched("LEAD", wait=(1,))
    assert status == 1 and re.search(r"error: process 0 at localhost:\d+, the coordinator, is gone \(.*refused\)", second), second
    assert time.monotonic() - began < 60
    (_, first), (status, second) = watched("ABORT")
    assert status == -signal.SIGABRT and "coordinator" not in second, "an abort with another reason stays one"
    assert f"error: process 1 on {socket.gethostname()} has given no sign of life" in first


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(coordinator="host"), "wanted HOST:PORT, auto or nothing"),
        (dict(coordinator="a:1", count=2, number=2), "processes.number: got 2, wanted 0 … processes.count − 1 = 1"),
        (dict(patience=1), "at least 5 seconds"),
    ],
)
def test_bad_numbers_are_one_clear_line(options, message):
    with pytest.raises(UserError, match=message):
        processes.ProcessConfig(**options)


def run_together(folder, count: int, devices: int, *options, patience: int = 20, program=("-m", "antisd_jax")):
    """A small run of `count` processes with so many devices each."""
    port = free_port()
    flags = [f"--{o}" for o in (*SMALL, "mesh.fsdp=2", f"output={folder}", *options)]
    if count > 1:
        flags += [f"--processes.coordinator=localhost:{port}", f"--processes.count={count}", f"--processes.patience={patience}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    how = dict(env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    command = [sys.executable, *program, "train", SMOKE, *flags]
    return [subprocess.Popen([*command, f"--processes.number={n}"] if count > 1 else command, **how) for n in range(count)]


def same_run(a, b, tolerance: float) -> None:
    """Tokens, grades and gate decisions are the same; numbers differ by no more than the tolerance."""
    told = ("sample", "response", "outcome", "finish_reason", "context_source")
    rows = [[{k: row[k] for k in told} for row in read_jsonl(f / "rollouts.jsonl")] for f in (a, b)]
    assert rows[0] == rows[1] and len(rows[0]) > 60
    for x, y in zip(metrics(a), metrics(b), strict=True):
        assert x.keys() == y.keys()
        for k in x:
            rough = k.startswith("training/rollout_probs_diff")  # rounding itself
            assert x[k] == pytest.approx(y[k], rel=tolerance, abs=1e-5 if rough else 1e-7), (k, x["step"])


def weights_of(folder, step: int):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    checkpoints = Checkpoints(folder / "checkpoints", config.Config().checkpoint, read_only=True)
    state, record = checkpoints.restore(
        step, abstract_state(abstract(load_config(HERE / "model"), mesh), config.load([SMOKE], SMALL).optim, mesh)
    )
    checkpoints.close()
    return state, record


@pytest.mark.long
def test_one_two_and_four_processes_are_the_same_run_and_another_number_goes_on(tmp_path):
    """Four devices each time. A process of two is killed in the middle; then all four devices belong to one process, which goes on."""
    folders, options = {n: tmp_path / str(n) for n in (1, 2, 4)}, ("steps=4", "checkpoint.every=1", "eval.every=0")
    for n in (1, 4):
        done = ended(run_together(folders[n], n, 4 // n, *options), 240)
        assert [status for status, _ in done] == [0] * n, done[0][1][-3000:]
    started = run_together(folders[2], 2, 2, *options)
    while not (folders[2] / "checkpoints" / "1").exists() and started[0].poll() is None:
        time.sleep(0.02)
    started[1].kill()
    (status, said), _ = ended(started, 60)
    assert status == 1 and f"error: process 1 on {socket.gethostname()} has given no sign of life" in said, said[-3000:]
    ((status, said),) = ended(run_together(folders[2], 1, 4, *options), 240)
    assert status == 0 and "resuming at step" in said, said[-3000:]
    for n in (2, 4):
        same_run(folders[1], folders[n], 1e-3)
        for a, b in zip(*(jax.tree.leaves(weights_of(folders[m], 4)[0].weights) for m in (1, n))):
            assert np.allclose(a, b, atol=1e-5)


class Impatient(processes._State):
    """Asked to stop at a certain safe point."""

    stop = 0

    @property
    def asked(self):
        return self.points >= self.stop

    @asked.setter
    def asked(self, _):
        self.points = 0


@pytest.mark.long
def test_a_run_that_is_asked_to_stop_again_and_again_ends_as_if_it_never_was(tmp_path, monkeypatch):
    """At safe points of every phase; each time the same command goes on, until it is through."""
    options = ("steps=4", "optim.minibatches=2")
    train(small(tmp_path / "whole", *options))
    monkeypatch.setattr(processes, "_here", Impatient())
    where, attempts = set(), 0
    while attempts < 100:
        attempts += 1
        processes._here.stop = 3 * attempts // 2  # of the first steps two safe points of three
        try:
            train(small(tmp_path / "torn", *options))
        except processes.Preempted as e:
            where |= {frame.name for frame in traceback.extract_tb(e.__traceback__)}
            continue
        if len(metrics(tmp_path / "torn")) == 5:
            break
    assert len({"generate", "verdicts", "teacher_scores", "student_scores", "learn", "measure"} & where) >= 5 and attempts >= 8
    assert metrics(tmp_path / "torn") == metrics(tmp_path / "whole")
    for name in ("rollouts.jsonl", "evaluations.jsonl"):
        assert read_jsonl(tmp_path / "torn" / name) == read_jsonl(tmp_path / "whole" / name)
    ends = [jax.tree.leaves(weights_of(tmp_path / name, 4)[0]) for name in ("whole", "torn")]
    assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(*ends))


def test_sigterm_leads_to_a_checkpoint_and_a_status_that_says_again(tmp_path):
    (process,) = run_together(tmp_path, 1, 2, "steps=50", "checkpoint.every=0", "eval.every=0")
    while not any(row["step"] == 2 for row in read_jsonl(tmp_path / "metrics.jsonl")) and process.poll() is None:
        time.sleep(0.05)
    process.terminate()
    ((status, said),) = ended([process], 60)
    assert status == processes.AGAIN and "stopped as asked" in said and "Traceback" not in said, said[-3000:]
    (kept,) = [int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    assert kept == metrics(tmp_path)[-1]["step"] >= 2


@pytest.mark.long
def test_a_step_whose_evaluation_was_cut_off_is_finished_once(tmp_path, monkeypatch):
    """Stopped within the last evaluation: a checkpoint with the step's metrics; later commands finish it, and then have nothing to do."""
    options = ("steps=2", "eval.every=2", "checkpoint.every=0")
    train(small(tmp_path / "whole", *options))
    monkeypatch.setattr(processes, "_here", Impatient())
    where = set()
    for checkpoint in (1, 2):
        for stop in range(1, 60):
            processes._here.stop = stop
            try:
                train(small(tmp_path / "torn", *options))
            except processes.Preempted as e:
                where = {frame.name for frame in traceback.extract_tb(e.__traceback__)}
            if (tmp_path / "torn" / "checkpoints" / str(checkpoint)).exists():
                break
    assert "measure" in where and metrics(tmp_path / "torn")[-1]["step"] == 1
    processes._here.stop = 10**9
    for _ in range(2):
        train(small(tmp_path / "torn", *options))
        assert metrics(tmp_path / "torn") == metrics(tmp_path / "whole")
    assert weights_of(tmp_path / "torn", 2)[1]["told"], "which the second command must not take up again"
    written = (tmp_path / "torn" / "metrics.jsonl").stat().st_mtime_ns
    train(small(tmp_path / "torn", *options))
    assert (tmp_path / "torn" / "metrics.jsonl").stat().st_mtime_ns == written


@pytest.mark.long
def test_a_part_that_one_of_two_cannot_read_sends_both_to_the_one_before_it_and_a_process_that_is_gone_does_not(tmp_path):
    options = ("steps=2", "checkpoint.every=1", "eval.every=0", "lengths.response=16")
    assert [status for status, _ in ended(run_together(tmp_path, 2, 1, *options), 240)] == [0, 0]
    expected = metrics(tmp_path)

    gone = "import os, sys; from antisd_jax import checkpoint, cli; dies = '--processes.number=1' in sys.argv\n"
    gone += "if dies: checkpoint.Checkpoints._restore = lambda *_: os.kill(os.getpid(), 9)\nsys.exit(cli.main())"
    (status, said), (other, _) = ended(run_together(tmp_path, 2, 1, *options, patience=10, program=("-c", gone)), 240)
    assert (status, other) == (1, -9) and "error: process 1 on " in said and "cannot be read" not in said, said[-3000:]
    assert not list((tmp_path / "checkpoints").glob(".unreadable*")), "a process that is gone is no damage"

    parts = [p for p in (tmp_path / "checkpoints" / "2" / "state" / "ocdbt.process_1").rglob("*") if p.is_file()]
    largest = max(parts, key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    done = ended(run_together(tmp_path, 2, 1, *options, patience=10), 240)
    assert all(status for status, _ in done) and "cannot be read" in done[0][1] and "the run passes it over" in done[0][1], done[0][1][
        -3000:
    ]
    (status, said), (other, _) = ended(run_together(tmp_path, 2, 1, *options), 240)
    assert (status, other) == (0, 0) and "it is set aside as damaged-2, and the run goes on from step 1" in said, said[-3000:]
    assert "cannot be read: " in said, "with the reason that the other start met"
    assert metrics(tmp_path) == expected


@pytest.mark.long
def test_antisd_goes_on_from_a_run_of_grpo(tmp_path, capsys):
    """Twenty steps, then twenty: another gate, the next problems, the moments as they were."""
    grpo = ROOT / "configs" / "methods" / "grpo.yaml"
    options = ("eval.every=0", "checkpoint.every=0", "lengths.response=16")
    train(small(tmp_path / "grpo", "steps=20", *options, files=[grpo]))
    parent, record = weights_of(tmp_path / "grpo", 20)
    c = small(tmp_path / "antisd", "steps=20", *options, f"init.run={tmp_path / 'grpo'}@20")
    train(config.load([], [f"{k}={json.dumps(v)}" for k, v in config.flatten(c).items()] + ["steps=1"]))
    state, first = weights_of(tmp_path / "antisd", 1)
    assert "goes on from step 20 of" in capsys.readouterr().out
    assert int(state.optimizer[1][0].count) == int(parent.optimizer[1][0].count) + 1 == 21
    train(c)
    assert weights_of(tmp_path / "antisd", 20)[1]["cursor"] == record["cursor"] + 160 == 320
    rows = metrics(tmp_path / "antisd")
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert rows[0]["antisd/lambda"] == 0.0 and "antisd/gate/level" in rows[2], "the gate is calibrated again"
    asked = [row["id"] for n in ("grpo", "antisd") for row in read_jsonl(tmp_path / n / "rollouts.jsonl") if row["sample"] == 0]
    whole = [row["id"] for row in read_jsonl(tmp_path / "grpo" / "rollouts.jsonl") if row["sample"] == 0]
    assert len(asked) == len(set(asked)) == 320 and asked[:160] == whole
    fresh = small(tmp_path / "fresh", "steps=1", *options, f"init.run={tmp_path / 'grpo'}", "init.optimizer=false")
    train(fresh)
    assert int(weights_of(tmp_path / "fresh", 1)[0].optimizer[1][0].count) == 1
    with pytest.raises(UserError, match="has no checkpoint 7; there are: 20"):
        train(small(tmp_path / "none", "steps=1", *options, f"init.run={tmp_path / 'grpo'}@7"))
    assert Order(list(range(400)), 0).take(0, 320) == Order(list(range(400)), 0).take(0, 160) + Order(list(range(400)), 0).take(160, 160)
