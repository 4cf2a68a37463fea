import subprocess
import sys
from dataclasses import replace

import pytest
import yaml
from conftest import ROOT

from antisd_jax import config
from antisd_jax.config import Config, load
from antisd_jax.errors import UserError

METHODS = sorted((ROOT / "configs" / "methods").glob("*.yaml"))


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_files_merge_left_to_right_and_options_win(tmp_path):
    a = write(tmp_path, "a.yaml", "steps: 3\noptim: {lr: 1e-3, clip_low: 0.1}\n")
    b = write(tmp_path, "b.yaml", "optim: {lr: 2e-3}\n")
    c = load([a, b], ["optim.clip_high=0.28", "prompt.sources=[answer]"])
    assert (c.steps, c.optim.lr, c.optim.clip_low, c.optim.clip_high, c.prompt.sources) == (3, 2e-3, 0.1, 0.28, ("answer",))


@pytest.mark.parametrize(
    "option, message",
    [
        ("smaples=4", r"unknown config key smaples \(did you mean 'samples'\?\)"),
        ("optim.learning_rate=1", "unknown config key optim.learning_rate"),
        ("optm.lr=1", r"unknown config key optm \(did you mean 'optim'\?\)"),
        ("lr=1e-5", r"unknown config key lr \(did you mean 'optim.lr'\?\)"),
        ("steps=1.5", "steps: got 1.5, wanted int"),
        ("steps=true", "steps: got True, wanted int"),
        ("optim.lr=fast", "optim.lr: got 'fast', wanted float"),
        ("prompt.thinking=1", "prompt.thinking: got 1, wanted bool"),
        ("optim=3", "optim is a section of keys, got 3"),
        ("method.gate.statistic=token_meen", "method.gate.statistic: got 'token_meen', wanted one of .*did you mean 'token_mean'"),
        ("lengths.context=10", "lengths.context: got 10, wanted at least lengths.prompt = 24"),
        ("reward.workers=0", "reward.workers: got 0, wanted at least 1"),
        ("mesh.fsdp=0", "mesh.fsdp: got 0, wanted at least 1"),
        ("eval.sampling.top_p=0", r"eval.sampling.top_p: got 0.0, wanted in \(0, 1\]"),
        ("seed=4294967296", "seed: got 4294967296, wanted below 2³²"),
        ("watchdog.stop=[cap]", "watchdog.stop: got 'cap', wanted one of capped"),
        ("watchdog.window=0", "watchdog.window: got 0, wanted at least 1"),
        ("samples=1", "samples: got 1, wanted at least 2"),
        ("sampling.temperature=0", "sampling.temperature: got 0.0, wanted above 0"),
        ("optim.minibatches=3", "wanted a divisor of the 256 rollouts"),
        ("method.gate.high=1.3", r"method.gate.back: got 0.0, wanted above 0 and at most method.gate.high = 1.3"),
        ("method.gate.adaptive=0.2", "method.gate.statistic: got 'token_mean', wanted teacher_perplexity"),
        ("reward.kind=maths", "reward.kind: 'maths' is none of countdown, math"),
    ],
)
def test_a_bad_key_or_value_is_named(option, message):
    with pytest.raises(UserError, match=message):
        load([], [option])


@pytest.mark.parametrize("key", [k for k, v in config.flatten(Config()).items() if isinstance(v, float)])
def test_a_number_is_finite(key):
    for text in (".nan", ".inf", "-.inf", "1e999", "-1e999"):
        with pytest.raises(UserError, match=f"{key}: got -?(nan|inf), wanted a finite number"):
            load([], [f"{key}={text}"])
    with pytest.raises(UserError, match=f"{key}: got 1000+, wanted float"):
        load([], [f"{key}=1{'0' * 400}"])


def test_outliers_need_a_warm_up():
    with pytest.raises(UserError, match="method.gate.statistic: got 'none', wanted one that has a warm-up"):
        load([], ["method.term.outlier=2", "method.gate.statistic=none"])
    load([], ["method.term.outlier=2", "method.gate.statistic=none", "method.lam_max=0"])
    with pytest.raises(UserError, match="method.gate.warmup: got 0, wanted at least 1 with method.term.outlier"):
        load([], ["method.term.outlier=2", "method.gate.warmup=0"])
    with pytest.raises(UserError, match="method.term.signal: got 'length', wanted teacher with method.term.outlier"):
        load([], ["method.term.outlier=2", "method.term.signal=length"])


def test_a_date_is_a_text(tmp_path):
    (tmp_path / "c.yaml").write_text("output: 2024-01-01\n")
    assert load([str(tmp_path / "c.yaml")], ["model.revision=2024-13-45"]).output == "2024-01-01"
    assert load([], ["output=2024-01-01", "model.revision=2024-13-45"]).model.revision == "2024-13-45"


def test_a_bad_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nothing.yaml cannot be read"):
        load([str(tmp_path / "nothing.yaml")], [])
    with pytest.raises(UserError, match="is not YAML"):
        load([write(tmp_path, "x.yaml", "a: [")], [])


def test_the_resolved_configuration_reads_back_equal():
    c = load([str(ROOT / "configs" / "smoke.yaml")], ["optim.lr=1e-7", "prompt.elision=…"])
    assert config.build(Config, yaml.safe_load(config.dump(c))) == c


def test_differences_name_the_keys_and_leave_out_what_a_run_may_change():
    old = Config()
    assert config.differences(old, replace(old, steps=7, output="x")) == []
    assert config.differences(old, replace(old, seed=5, problems=2)) == ["seed: 0 → 5", "problems: 32 → 2"]


@pytest.mark.parametrize("file", METHODS, ids=lambda f: f.stem)
def test_a_method_file_sets_every_key_of_its_section(file):
    """So that `smoke.yaml X.yaml` is X whatever came before it."""
    values = yaml.safe_load(file.read_text())
    assert list(values) == ["method"]
    assert values["method"]["name"] == file.stem
    flat = config.flatten(config.build(config.Method, values["method"]))
    given = {f"{k}.{i}" if isinstance(v, dict) else k for k, v in values["method"].items() for i in (v if isinstance(v, dict) else [0])}
    assert given == set(flat)


def test_the_default_method_is_the_antisd_preset():
    assert load([str(ROOT / "configs" / "methods" / "antisd.yaml")], []) == Config()


def test_the_command_line_prints_one_line_and_fails(tmp_path):
    def run(*args):
        return subprocess.run([sys.executable, "-m", "antisd_jax", *args], capture_output=True, text=True)

    done = run("train", "--stepz=3")
    assert (done.returncode, done.stderr) == (2, "error: unknown config key stepz (did you mean 'steps'?)\n")
    assert run("train", "--steps", "3").stderr == "error: --steps: options are written --key=value\n"
    assert run("trian").stderr == "error: unknown command 'trian' (did you mean 'train'?)\n"
    assert run("report", str(tmp_path)).stderr.startswith(f"error: {tmp_path} has no metrics.jsonl")
    assert run("--version").stdout.strip()
