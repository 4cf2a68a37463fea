"""Checkpoints that are damaged, or cannot be written; and which of them stay."""

import os
import shutil
import subprocess

import pytest
from conftest import ROOT
from test_processes import weights_of
from test_train import command, metrics, small

from antisd_jax.checkpoint import Checkpoints
from antisd_jax.config import Config
from antisd_jax.errors import UserError
from antisd_jax.train import train


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of four steps with checkpoints at two and four, to be copied and damaged."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(small(folder, "steps=4", "eval.every=0"))
    return folder


@pytest.mark.parametrize("how", ["cut short", "gone", "one bit", "record", "record changed"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_it_used(whole, tmp_path, capsys, how):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    expected = metrics(whole)
    newest = tmp_path / "checkpoints" / "4"
    record = newest / "record" / "metadata"
    largest = max((p for p in (newest / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    if how == "record":
        record.write_text('{"step": 4, "cur')
    elif how == "record changed":
        record.write_text(record.read_text().replace('"cursor": 32', '"cursor": 33'))
    elif how == "one bit":  # which the files themselves do not tell
        data = bytearray(largest.read_bytes())
        data[len(data) // 2] ^= 16
        largest.write_bytes(data)
    else:
        largest.unlink() if how == "gone" else os.truncate(largest, largest.stat().st_size // 2)
    train(small(tmp_path, "steps=4", "eval.every=0"))
    said = capsys.readouterr()
    assert "checkpoints/4 cannot be read" in said.err and "the run goes on from step 2" in said.err and "resuming at step 2" in said.out
    assert len(said.err.splitlines()) < 20, "Orbax says much"
    assert metrics(tmp_path) == expected and (tmp_path / "checkpoints" / "damaged-4").is_dir()
    assert weights_of(tmp_path, 4)[1]["step"] == 4


def test_a_collective_that_breaks_while_sums_are_taken_is_no_damage(whole, tmp_path, monkeypatch):
    """Another process was killed meanwhile: the checkpoint is good, and must be there for the next start."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)

    def broken(state):
        raise RuntimeError("Gloo: connection closed by peer")

    with monkeypatch.context() as m:
        m.setattr("antisd_jax.checkpoint._sums", broken)
        with pytest.raises(RuntimeError, match="connection closed"):
            train(small(tmp_path, "steps=6", "eval.every=0"))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "4"]
    train(small(tmp_path, "steps=6", "eval.every=0"))
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_the_best_checkpoint_stays_besides_the_last(tmp_path):
    """Also where the run was stopped in between: the scores stand beside the checkpoints."""
    train(small(tmp_path, "steps=4", "checkpoint.every=1", "checkpoint.keep=1", "eval.every=1"))
    train(small(tmp_path, "steps=7", "checkpoint.every=1", "checkpoint.keep=1", "eval.every=1"))
    scores = {row["step"]: row["eval/average"] for row in metrics(tmp_path)[1:]}
    best = max(scores, key=lambda step: (scores[step], step))
    assert {int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()} == {best, 7} and len(set(scores.values())) > 3
    assert best != 7, "or this shows nothing"


def test_a_damaged_score_costs_a_place_among_the_best_and_nothing_else(tmp_path, capsys):
    train(small(tmp_path, "steps=4", "checkpoint.keep=1", "checkpoint.best=1"))
    scored = sorted((tmp_path / "checkpoints").glob("[0-9]*/metrics/metrics"))
    assert scored
    for file in scored:
        file.write_text(file.read_text()[:-4])
    with pytest.raises(UserError, match="checkpoint folder .* cannot be used"):
        Checkpoints(tmp_path / "checkpoints", Config().checkpoint, read_only=True)
    train(small(tmp_path, "steps=6", "checkpoint.keep=1", "checkpoint.best=1"))
    said = capsys.readouterr()
    assert "the step does not count among the best" in said.err and "resuming at step 4" in said.out
    assert [row["step"] for row in metrics(tmp_path)] == list(range(7))


FULL = """
set -e
mount -t tmpfs -o size=3m tmpfs disk
set +e; "$@"; first=$?; set -e
ls disk/run/checkpoints > kept
mount -o remount,size=40m disk
"$@"
cp -r disk/run through
exit $first
"""


@pytest.mark.long
def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(tmp_path):
    """The room is a small tmpfs, of which only this test knows."""
    (tmp_path / "disk").mkdir()
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine grants no mount namespace")
    whole = subprocess.run(command(tmp_path / "whole", "steps=4", "checkpoint.every=1"), capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    again = ["unshare", "-rm", "sh", "-c", FULL, "sh", *command("disk/run", "steps=4", "checkpoint.every=1")]
    done = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2 and line.startswith("error: checkpoint disk/run/checkpoints/2 cannot be written: it takes 1.7 MiB, and"), (
        done.stderr
    )
    assert line.endswith("Complete ones: 1") and (tmp_path / "kept").read_text().split() == ["1"] and "resuming at step 1" in done.stdout
    assert metrics(tmp_path / "through") == metrics(tmp_path / "whole")


def test_a_write_that_fails_behind_the_run_is_one_line(tmp_path, monkeypatch):
    """Orbax tells of it at the next save, or at the end."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", Config().checkpoint)
    (tmp_path / "checkpoints" / "1").mkdir()
    checkpoints.writing = 2

    def broken():
        raise ValueError(
            "RESOURCE_EXHAUSTED: Error writing: Failed to write 9 bytes to file 20: No space left on device [os_error_code='28']"
        )

    monkeypatch.setattr(checkpoints.manager, "wait_until_finished", broken)
    with pytest.raises(UserError, match="checkpoints/2 cannot be written: No space left on device. Complete ones: 1$"):
        checkpoints.close()
    checkpoints.close()
