import json

import numpy as np
import pytest
from browser import readable
from conftest import ROOT

from antisd_jax import config
from antisd_jax.cli import main
from antisd_jax.errors import UserError
from antisd_jax.evaluate_model import evaluate_model
from antisd_jax.files import append_rows, read_jsonl
from antisd_jax.train import train

SMALL = ["problems=8", "samples=4", "lengths.response=32", "eval.limit=12", "mesh.fsdp=2"]


def load(folder, *options):
    return config.load([str(ROOT / "configs" / "smoke.yaml")], [f"output={folder}", *SMALL, *options])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps, evaluated at each, with four samples a problem."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(load(folder, "steps=2", "eval.every=1", "eval.samples=4", "checkpoint.every=1"))
    return folder


@pytest.fixture
def other(tmp_path):
    """A second benchmark: other puzzles, of the training set."""
    from antisd_jax.tiny import HERE

    path = tmp_path / "other.jsonl"
    path.write_text("".join(line + "\n" for line in (HERE / "train.jsonl").read_text().splitlines()[:12]))
    return path


def test_a_checkpoint_evaluates_as_it_did_in_training(run, tmp_path, capsys):
    for step in (1, 2):
        out = tmp_path / str(step)
        assert main(["evaluate", str(run), f"--step={step}", f"--output={out}"]) == 0
        row = read_jsonl(run / "metrics.jsonl")[step]
        numbers = json.loads((out / "results.json").read_text())["benchmarks"]["countdown"]
        assert numbers["avg"] == {"mean": row["eval/average"], "low": row["eval/average_low"], "high": row["eval/average_high"]}
        assert numbers["pass"]["4"]["mean"] == row["eval/countdown/pass@4"] and numbers["maj"]["mean"] == row["eval/countdown/maj@4"]
        generations = [r for r in read_jsonl(run / "evaluations.jsonl") if r["step"] == step]
        assert [r["response"] for r in generations] == [r["response"] for r in read_jsonl(out / "generations.jsonl")]
    assert "| run @2 | " in capsys.readouterr().out


def test_an_evaluation_goes_on_where_it_was_stopped(tmp_path, other):
    """Half of its rows, the last one torn; another batch size; the same numbers, to the byte."""
    options = [f"eval.data=[countdown:eval@3, {other}]", "eval.samples=2"]
    first = evaluate_model(load(tmp_path / "whole", *options))
    assert [(r.name, r.samples, len(r.ids)) for r in first] == [("countdown", 3, 12), ("other", 2, 12)]
    lines = (tmp_path / "whole" / "generations.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 12 * 3 + 12 * 2
    (tmp_path / "part").mkdir()
    for name in ("evaluation.json",):
        (tmp_path / "part" / name).write_text((tmp_path / "whole" / name).read_text())
    (tmp_path / "part" / "generations.jsonl").write_text("".join(lines[:16]) + lines[16][:30])
    evaluate_model(load(tmp_path / "part", *options, "problems=16"))
    for name in ("results.json", "results.md", "problems.csv", "report.html"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name

    def by_place(folder):
        return sorted(read_jsonl(tmp_path / folder / "generations.jsonl"), key=lambda r: (r["benchmark"], r["index"], r["sample"]))

    assert by_place("part") == by_place("whole")


def test_the_average_is_unweighted_and_every_problem_is_counted(tmp_path, other):
    results = evaluate_model(load(tmp_path / "out", f"eval.data=[countdown:eval@4, {other}@2]"))
    numbers = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = read_jsonl(tmp_path / "out" / "generations.jsonl")
    for r in results:
        right = [row["outcome"] == "correct" for row in rows if row["benchmark"] == r.name]
        assert numbers["benchmarks"][r.name]["avg"]["mean"] == pytest.approx(np.mean(right)) and len(right) == 12 * r.samples
    assert numbers["average"]["mean"] == pytest.approx(np.mean([r.average for r in results]))
    counts = [line.split(",") for line in (tmp_path / "out" / "problems.csv").read_text().splitlines()[1:]]
    assert sum(int(c[2]) for c in counts) == sum(row["outcome"] == "correct" for row in rows)
    assert (tmp_path / "out" / "pass_at_k.png").stat().st_size > 5000 and "<svg" in (page := (tmp_path / "out" / "report.html").read_text())
    readable(page, tmp_path)


def test_another_evaluation_in_the_same_folder_is_refused(run, tmp_path):
    out = f"--output={tmp_path / 'out'}"
    assert main(["evaluate", str(run), out, "--eval.limit=2"]) == 0
    with pytest.raises(UserError, match="holds another evaluation: .*seed: 0 → 1"):
        evaluate_model(load(tmp_path / "out", "eval.limit=2", "seed=1"), run)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["RUN"], "antisd evaluate needs --output=DIR"),
        (["RUN", "--output=OUT", "--step=7"], "has no checkpoint 7; there are: 1, 2"),
        (["--output=OUT", "--step=7"], "--step=7: wanted the number of a checkpoint of a run"),
        (["RUN", "--output=RUN"], "the run's own folder"),
        (["OUT/..", "--output=OUT"], "is not a run's folder"),
        (["RUN", "--output=OUT", "--eval.data=[a.jsonl, b/a.jsonl]"], "two benchmarks are called 'a'"),
        (["RUN", "--output=OUT", "--eval.data=nothing.jsonl"], "eval.data: nothing.jsonl cannot be read"),
        (["RUN", "--output=OUT", "--eval.data=[]"], "eval.data: got [], wanted at least one benchmark"),
        (["RUN", "--output=OUT", "--eval.data=countdown:eval@0"], "asks for no samples"),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, capsys, arguments, message):
    (tmp_path / "out").mkdir()
    filled = [a.replace("RUN", str(run)).replace("OUT", str(tmp_path / "out")) for a in arguments]
    assert main(["evaluate", *filled]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_table_of_runs_reads_their_logs(run, capsys):
    assert main(["table", str(run), str(run)]) == 0
    head, _, first, second = capsys.readouterr().out.splitlines()
    assert head == "| run | countdown | Average@best | Average@last | speed-up |" and first == second
    assert main(["table", str(run.parent)]) == 2 and "holds no evaluation" in capsys.readouterr().err


def test_rows_are_appended_after_a_torn_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_rows(path, [{"a": 1}])
    with open(path, "a") as file:
        file.write('{"a": 2, "tor')
    append_rows(path, [{"a": 3}])
    assert read_jsonl(path) == [{"a": 1}, {"a": 3}]
