"""Data sets by name, through the real libraries, from a hub on loopback (fake_hub.py)."""

import subprocess
import sys
from pathlib import Path

import pytest

from antisd_jax.text.data import DataConfig, benchmark
from antisd_jax.text.hub import SETS, knows

HERE = Path(__file__).parent


def with_hub(tmp_path, code: str) -> list[str]:
    """The lines that the code prints, run beside a hub."""
    done = subprocess.run([sys.executable, str(HERE / "fake_hub.py"), str(tmp_path / "home")], input=code, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_a_name_is_read_and_pinned_to_the_commit_that_was_read_first(tmp_path):
    code = f"""
from pathlib import Path
from antisd_jax.problems import Pins
from antisd_jax.text.card import Card
from antisd_jax.text.data import DataConfig, load
config = DataConfig("o/n", split="train")
def read():
    pins, card = Pins(Path({str(tmp_path / "revisions.json")!r})), Card("o/n")
    problems = load(pins.of(config), "data.path", card)
    pins.add(config, card)
    print(len(problems), problems[1].answer.strip(), problems[1].solution, card.lines()[0])
read()
HUB.move()
read()
print(len(load(config, "data.path")), len(load(DataConfig("o/n", "main", "test"), "data.path")))
"""
    card = "o/n@aaaaaaaaaaaa: 2 rows, 0 problems"
    assert with_hub(tmp_path, code) == [f"2 2 It is. {card}", f"2 2 It is. {card}", "3 1"]


def test_what_is_not_there_is_one_clear_line(tmp_path):
    code = """
from antisd_jax.errors import UserError
from antisd_jax.text.data import DataConfig, load
for config in (DataConfig("o/n"), DataConfig("o/n", split="dev"), DataConfig("o/n", "high"), DataConfig("o/absent"), DataConfig("aime2024")):
    try:
        load(config, "data.path")
    except UserError as e:
        print(e)
"""
    lines = with_hub(tmp_path, code)
    assert len(lines) == 5
    assert lines[0] == "data.path: o/n has the splits train, test; name one (data.split; in eval.data: o/n:SPLIT)"
    assert lines[1].startswith("data.path: no such file, and not to be had as o/n at 'main' from the hub: Unknown split")
    assert "BuilderConfig 'high' not found" in lines[2]
    assert lines[3].startswith("data.path: no such file, and not to be had as o/absent at 'main'")
    assert "not to be had as HuggingFaceH4/aime_2024 at 'main'" in lines[4]


@pytest.mark.parametrize(
    "spec, name, data, samples",
    [
        ("aime2024", "aime2024", DataConfig("aime2024"), 4),
        ("minerva_math@2", "minerva_math", DataConfig("minerva_math"), 2),
        ("countdown:eval@32", "countdown", DataConfig("countdown:eval"), 32),
        ("here/rows.jsonl@8", "rows", DataConfig("here/rows.jsonl"), 8),
        ("o/n", "n", DataConfig("o/n"), 4),
        ("o/n:test", "n_test", DataConfig("o/n", "", "test"), 4),
        ("o/n:main:test@1", "n_main_test", DataConfig("o/n", "main", "test"), 1),
    ],
)
def test_benchmarks_by_name(spec, name, data, samples):
    found = benchmark(spec, 4)
    assert (found.name, found.data, found.samples) == (name, data, samples)


def test_short_names_are_those_of_the_paper_and_files_are_not_names():
    assert {"dapo_math_17k", "aime2024", "aime2025", "aime2026", "hmmt_feb_2025", "minerva_math"} < set(SETS)
    assert not knows("data/train.jsonl") and not knows("./o/n") and not knows("a/b/c") and knows("o/n")
