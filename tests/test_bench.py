"""antisd bench rollout: what it prints, and its bound against a count by hand; and the file that benchmarks write into."""

import json
import sys

import numpy as np
import pytest
from conftest import ROOT

from antisd_jax.bench import least_seconds
from antisd_jax.cli import main
from antisd_jax.model.parameters import LayerKind, ModelConfig
from antisd_jax.model.rope import Rope
from antisd_jax.rollout.books import Tally

sys.path.insert(0, str(ROOT / "benchmarks"))

from results_file import write_part  # noqa: E402


def test_the_lines_add_up(capsys, monkeypatch):
    monkeypatch.setattr("antisd_jax.bench.SIDE", 1024)  # of the matrix whose products are timed: the real one takes half a minute
    options = ["--rounds=1", "--median=10", "--problems=8", "--samples=2", "--lengths.response=40", "--rollout.slots=8"]
    assert main(["bench", "rollout", str(ROOT / "configs" / "smoke.yaml"), *options]) == 0
    machine, first, row, medians = map(json.loads, capsys.readouterr().out.splitlines())
    assert machine["parameters"] == 152_800 and min(machine["gbytes_per_s"], machine["gflop_per_s"]) > 0
    assert first["round"].startswith("first") and row["round"] == 1 and medians["median_of"] == 1
    wanted = np.clip(np.exp(np.random.default_rng(0).normal(np.log(10), 1.0, (8, 2))), 1, 40).astype(int)
    assert row["tokens"] == wanted.sum() and row["prefilled_tokens"] == 8 * 24 and row["wasted_tokens"] > 0
    assert all(row[f"{name}_s"] > 0 for name in ("layout", "prefill", "place", "decode", "host", "reading_bound", "product_bound"))
    assert {k: v for k, v in row.items() if k != "round"} == {k: v for k, v in medians.items() if k != "median_of"}


def test_the_bound_by_hand(mesh1):
    """A prompt of 2 tokens, samples of 1 and 3: a layer without a window looks at 2, and 2 + 3 + 4 columns; one of 3 at 2, and 2 + 3 + 3."""
    kinds = (LayerKind(Rope(1e4)), LayerKind(Rope(1e4), 3))
    c = ModelConfig(vocab=10, width=4, layers=2, heads=2, kv_heads=1, head_dim=2, feed_forward=8, kinds=kinds)
    rates = {"bytes_per_s": 2.0, "flop_per_s": 4.0}
    reading, products = least_seconds(c, 2, np.array([[1, 3]]), 2, Tally(layout_bytes=1000), rates, mesh1, "float32")
    layer = 16 + 8 + 8 + 16 + 3 * 32 + 4 + 4 + 2 + 2
    assert reading == (3 * (1000 - 10 * 4 * 4) + 21 * 2 * 1 * 2 * 4) / 2
    assert products == (2 * 4 * (2 * layer + 4 + 40) + 21 * 4 * 2 * 2) / 4


@pytest.mark.parametrize(
    "args, message",
    [
        (["sampler"], "antisd bench: got 'sampler', wanted rollout"),
        (["rollout", "--rounds=0"], "rounds: got 0"),
        (["rollout", "--median=500"], "median: got 500, wanted 0 … lengths.response = 96"),
    ],
)
def test_bad_arguments_are_one_clear_line(capsys, args, message):
    assert main(["bench", *args]) == 2
    assert message in capsys.readouterr().err


def test_a_script_replaces_its_own_part_alone(tmp_path):
    path = tmp_path / "RESULTS.md"
    write_part("One", "first\n\n## inside\n", path)
    write_part("Two", "| a |", path)
    write_part("One", "again", path)
    assert path.read_text() == "# One\n\nagain\n\n# Two\n\n| a |\n"


@pytest.mark.long
def test_what_a_gpu_is_measured_with_runs_small_on_a_cpu(capsys):
    """Every part of ours but the sampler's, which has a benchmark of its own; transformers and torch stand in test_parity."""
    import gpu
    import gpu_worker as worker

    size = worker.SIZES["small"]
    worker.machine(size)
    machine = json.loads(capsys.readouterr().out)
    rates = {key: machine[key] for key in ("bytes_per_s", "flop_per_s")}
    assert 1e8 < rates["bytes_per_s"] < 1e13 and 1e8 < rates["flop_per_s"] < 1e15, "a machine's, and no constant's"
    worker.train(size, size["models"][0], rates)
    worker.step(size, size["models"][0], rates)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["part"] for row in rows] == ["score", "update", "update"] * 2 + ["optimizer", "step"]
    assert [row["remat"] for row in rows if row["part"] == "update"] == list(worker.REMAT) * 2
    assert all(0 < row["floor"] < 2 for row in rows[:-1]) and rows[-1]["antisd_over_grpo"] > 0
    text = gpu.table([machine, *rows], {"decode, Qwen3-8B": "cut off after 600 s"})
    assert "**update**" in text and "decode, Qwen3-8B: cut off after 600 s" in text and f"| {rows[1]['tokens_per_s']:,.0f} |" in text


def test_products_are_counted_as_by_hand():
    import gpu_worker as worker

    c = ModelConfig(vocab=10, width=4, layers=2, heads=2, kv_heads=1, head_dim=2, feed_forward=8, kinds=(LayerKind(Rope(1e4)),))
    layer = 16 + 8 + 8 + 16 + 3 * 32 + 4 + 4 + 2 + 2
    # A token meets its layers, the last norm and the table once; on average half of 6 keys, and as many values, in each layer.
    assert worker.products(c, 3, 6, 1) == 3 * 6 * (2 * (2 * layer + 4 + 40) + 2 * 2 * (2 * 2) * 6)
    assert worker.products(c, 3, 6, 3) == 3 * worker.products(c, 3, 6, 1)
