"""`antisd sweep`: which runs a file asks for, going on, and the shipped files."""

import json
import shlex

import pytest
import yaml
from conftest import ROOT
from test_train import SMALL

from antisd_jax.cli import main
from antisd_jax.config import dump, load
from antisd_jax.errors import UserError
from antisd_jax.sweep import jobs

SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))


def write(path, **sweep):
    path.write_text(yaml.safe_dump(sweep))
    return str(path)


def test_every_cell_of_the_matrix_is_a_run_and_later_keys_win(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    matrix = [{"method": ["grpo"], "seed": [0, 1]}, {"method": ["antisd", "sd"], "method.lam_max": [0.2], "seed": [1]}]
    file = write(tmp_path / "s.yaml", output="out", base=["configs/smoke.yaml"], set={"steps": 3, "optim.lr": 1e-4}, matrix=matrix)
    _, found = jobs(file, ["steps=5"])
    assert [str(j.folder) for j in found] == ["out/grpo-seed0", "out/grpo-seed1", "out/antisd-seed1", "out/sd-seed1"]
    configs = [load(list(j.files), list(j.options)) for j in found]
    assert [(c.method.name, c.method.lam_max, c.seed, c.steps, c.optim.lr) for c in configs] == [
        ("grpo", 0.0, 0, 5, 1e-4),
        ("grpo", 0.0, 1, 5, 1e-4),
        ("antisd", 0.2, 1, 5, 1e-4),
        ("sd", 0.2, 1, 5, 1e-4),
    ]


@pytest.mark.parametrize("file", SWEEPS, ids=lambda f: f.stem)
def test_shipped_sweeps_print_commands_whose_configurations_hold(file, monkeypatch, capsys):
    """Every printed line is a command of antisd whose methods are those of their files: GRPO has no λ, whatever else is set."""
    monkeypatch.chdir(ROOT)
    assert main(["sweep", str(file), "--print=true"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) >= 3 and len({line[-1] for line in lines}) == len(lines)
    for program, command, *rest in lines:
        assert (program, command) == ("antisd", "train")
        c = load([a for a in rest if not a.startswith("--")], [a.removeprefix("--") for a in rest if a.startswith("--")])
        assert (c.method.lam_max == 0) == (c.method.name == "grpo")
        if (
            "qwen3" in c.model.path.lower() and not c.init.run
        ):  # method.md, section 4: the paper's settings, of all that is called the paper's
            assert (c.steps, c.problems, c.samples, c.optim.lr) == (200, 32, 8, 1e-6) and (c.eval.every, c.eval.limit) == (10, 0)


@pytest.mark.long
def test_a_sweep_goes_on_where_it_was_stopped_and_ends_with_a_report(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    small = {k: yaml.safe_load(v) for k, v in (option.split("=", 1) for option in SMALL)} | {"steps": 2, "checkpoint.every": 1}
    matrix = {"method": ["grpo", "sd"], "seed": [0]}
    file = write(tmp_path / "s.yaml", base=["configs/smoke.yaml"], set=small, matrix=matrix)
    output = f"--output={tmp_path / 'out'}"
    assert (
        main(
            [
                "train",
                "configs/smoke.yaml",
                "configs/methods/grpo.yaml",
                *(f"--{k}={v}" for k, v in small.items()),
                "--seed=0",
                f"{output}/grpo-seed0",
            ]
        )
        == 0
    )
    (tmp_path / "out" / "sd-seed0").mkdir(parents=True)
    (tmp_path / "out" / "sd-seed0" / "config.yaml").write_text("steps: many")
    (tmp_path / "out" / "sd-seed0" / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n")
    assert main(["sweep", file, output]) == 2, "a run that fails ends the sweep"
    (tmp_path / "out" / "sd-seed0" / "metrics.jsonl").unlink()
    (tmp_path / "out" / "sd-seed0" / "config.yaml").unlink()
    capfd.readouterr()
    assert main(["sweep", file, output]) == 0
    said = capfd.readouterr().out
    assert "grpo-seed0 is there" in said and "step 2/2" in said and said.count("step 1/2") == 1
    assert (tmp_path / "out" / "report.html").exists() and "sd,1," in (tmp_path / "out" / "table.csv").read_text()


@pytest.mark.long
def test_a_run_that_its_watchdog_ends_has_a_report_and_does_not_end_the_sweep(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    small = {
        "steps": 2,
        "problems": 4,
        "samples": 2,
        "lengths.response": 16,
        "eval.every": 0,
        "watchdog.capped": 0.0,
        "watchdog.stop": ["capped"],
    }
    file = write(tmp_path / "s.yaml", base=["configs/smoke.yaml"], set=small, matrix={"method": ["grpo"], "seed": [0, 1]})
    for said in ("[2/2] was ended by its watchdog", "seed1 is there"):
        assert main(["sweep", file, f"--output={tmp_path / 'out'}"]) == 0
        assert said in capfd.readouterr().out
    assert "run to the length cap" in (tmp_path / "out" / "grpo-seed1" / "report.html").read_text()
    assert "run to the length cap" in (tmp_path / "out" / "report.html").read_text()


def test_a_run_is_passed_over_only_when_it_is_kept_and_of_this_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    file = write(tmp_path / "s.yaml", base=["configs/smoke.yaml"], set={"steps": 2}, matrix={"method": ["grpo"], "seed": [0]})
    (job,) = jobs(file, [f"output={tmp_path / 'out'}"])[1]
    assert not job.finished()
    job.folder.mkdir(parents=True)
    (job.folder / "config.yaml").write_text(dump(load(list(job.files), list(job.options))))
    (job.folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    assert not job.finished(), "logged, but killed before its checkpoint was written"
    (job.folder / "checkpoints" / "2").mkdir(parents=True)
    assert job.finished()
    assert not jobs(file, [f"output={tmp_path / 'out'}", "optim.lr=3e-4"])[1][0].finished(), "train refuses it, with the keys that differ"
    assert jobs(file, [f"output={tmp_path / 'out'}", "optim.micro_tokens=512"])[1][0].finished(), "rounding alone"


def test_a_run_that_went_on_after_its_watchdog_is_not_finished_where_it_was_stopped(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    file = write(
        tmp_path / "s.yaml", base=["configs/smoke.yaml"], set={"steps": 9, "watchdog.stop": ["capped"]}, matrix={"method": ["grpo"]}
    )
    (job,) = jobs(file, [f"output={tmp_path / 'out'}"])[1]
    (job.folder / "checkpoints" / "2").mkdir(parents=True)
    (job.folder / "checkpoints" / "5").mkdir()
    (job.folder / "config.yaml").write_text(dump(load(list(job.files), list(job.options))))
    (job.folder / "stopped.json").write_text('{"step": 2, "mode": "capped", "reason": "all of them"}\n')
    for last, finished in ((2, True), (5, False)):
        (job.folder / "metrics.jsonl").write_text(f'{{"step": {last}}}\n')
        assert job.finished() == finished, last


def test_values_are_read_as_they_were_written_and_sections_may_be_empty(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "s.yaml").write_text(
        "output:\nbase:\nset: {model.revision: '1.0', prompt.instruction: '[a: {', prompt.sources: [sibling, answer], rollout.ahead: false,\n"
        " model.path: 2024-01-01, data.path: '[🙂'}\nmatrix:\n"
    )
    ((only,),) = jobs(str(tmp_path / "s.yaml"), [])[1:]
    c = load(list(only.files), list(only.options))
    assert (c.prompt.instruction, c.model.path, c.data.path) == ("[a: {", "2024-01-01", "[🙂")
    assert str(only.folder) == "runs/sweeps/s/run" and '--data.path="[🙂"' in only.arguments
    assert (c.model.revision, c.prompt.sources, c.rollout.ahead) == ("1.0", ("sibling", "answer"), False)
    (tmp_path / "s.yaml").write_text("set:\nmatrix: {seed: [3]}\n")
    assert load([], list(jobs(str(tmp_path / "s.yaml"), [])[1][0].options)).seed == 3


def test_a_key_that_names_runs_is_not_overridden(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    file = write(tmp_path / "s.yaml", base=["configs/smoke.yaml"], matrix={"method": ["grpo"], "seed": [0, 1]})
    with pytest.raises(UserError, match="--seed: the matrix of .* varies it"):
        jobs(file, ["seed=7"])


@pytest.mark.parametrize(
    "sweep, message",
    [
        ({"matrixx": {}}, "unknown key 'matrixx' (did you mean 'matrix'?)"),
        ({"base": "configs/smoke.yaml"}, "base: got 'configs/smoke.yaml', wanted a list of files"),
        ({"base": [3]}, "base: got [3], wanted a list of files"),
        ({"output": 3}, "output: got 3, wanted a folder"),
        ({"output": ["a"]}, "output: got ['a'], wanted a folder"),
        ({"set": ["steps=3"]}, "set: got ['steps=3'], wanted a mapping of keys to values"),
        ({"matrix": {"seed": 3}}, "seed of the matrix wants a list of values"),
        ({"matrix": {"sed": [3]}}, "unknown config key sed"),
        ({"matrix": {3: [1, 2]}}, "unknown config key 3"),
        ({"matrix": {"method": ["gropo"]}}, "configs/methods/gropo.yaml cannot be read"),
    ],
)
def test_a_wrong_sweep_is_one_clear_line(tmp_path, monkeypatch, capsys, sweep, message):
    monkeypatch.chdir(ROOT)
    assert main(["sweep", write(tmp_path / "s.yaml", **sweep)]) == 2
    assert message in capsys.readouterr().err
