"""The study's analysis on recorded runs, against numbers worked out by hand."""

import json
import sys

import numpy as np
import pytest
from conftest import ROOT
from test_compare import RIGHT, recorded

from antisd_jax.sweep import jobs

sys.path.insert(0, str(ROOT / "benchmarks"))
import study  # noqa: E402


@pytest.fixture
def kept(tmp_path, capsys):
    """benchmarks/study of GRPO, AntiSD and SD of two seeds, two puzzles with four samples at steps 0, 10 and 20."""
    (tmp_path / "embedded").mkdir()
    folders = [recorded(tmp_path / "embedded" / f"{m}-seed{s}", m, s, RIGHT[s][m]) for m in ("grpo", "antisd", "sd") for s in (0, 1)]
    study.keep(folders, tmp_path / "study")
    return tmp_path / "study"


def test_what_is_kept_is_what_the_run_said_and_what_its_configuration_changed(kept):
    data = json.loads((kept / "embedded" / "antisd-seed1.json").read_text())
    assert data["solved"] == {"0": "11", "10": "22", "20": "23"} and data["samples"] == 4
    assert data["columns"]["reward"] == [1.1, 1.2] and "u" not in data["columns"]
    assert data["changes"]["method.lam_max"] == 0.5 and data["changes"]["seed"] == 1 and "output" not in data["changes"]


def test_differences_are_of_equal_seeds_and_equal_puzzles(kept):
    grpo, antisd = study.seeds(kept, "embedded/grpo"), study.seeds(kept, "embedded/antisd")
    last, area = study.differences(antisd, grpo, 100)
    np.testing.assert_allclose(last, [[0.25, 0.0], [0.0, 0.25]])  # fours: (4 2)−(3 2), (2 3)−(2 2)
    np.testing.assert_allclose(area, [[0.25, 0.125], [0.0, 0.125]])  # with step 10: (3 2)−(2 1), (2 2)−(2 2)
    np.testing.assert_allclose(study.differences(antisd, grpo, 10)[0], [[0.25, 0.25], [0.0, 0.0]])
    del grpo[0]
    np.testing.assert_allclose(study.differences(antisd, grpo, 100)[0], [[0.0, 0.25]])


def test_the_bootstrap_draws_seeds_and_puzzles():
    assert study.bootstrap(np.full((3, 5), 0.25)) == (0.25, 0.25, 0.25)
    apart = np.repeat(np.array([[0.0], [1.0]]), 50, axis=1)  # two seeds, all puzzles alike: a quarter of the draws is 0, a quarter is 1
    assert study.bootstrap(apart) == (0.5, 0.0, 1.0)
    puzzles = np.tile(np.random.default_rng(1).normal(0.1, 1.0, 400), (3, 1))  # all seeds alike: the error of a mean
    mean, low, high = study.bootstrap(puzzles)
    assert (high - low) / 2 == pytest.approx(1.96 * puzzles[0].std() / 20, rel=0.1) and low < mean < high


def test_a_table_row_by_hand(kept):
    rows, runs, missing = study.table(study.QUESTIONS[0], kept)
    grpo, antisd, sd = rows[1:]
    assert grpo[:8] == ["GRPO", "2", "0.562 @20", "–", "–", "–", "–", "0 of 2"]  # 9/16
    assert antisd[:3] == ["AntiSD", "2", "0.688 @20"] and antisd[3].startswith("+0.125 (") and antisd[4].startswith("+0.125 (")
    # GRPO's best on the mean curve, 9/16 at 20, AntiSD has at 10. Seed 0: 5/8 at 20, at 10. Seed 1: 4/8 at 10 already, at 10.
    assert antisd[5:7] == ["2.00×", "2.00×, 1.00×"] and sd[5] == "never"
    assert sd[7] == "2 of 2"  # 0 after 1/8 and 2/8
    assert antisd[-1] == grpo[-1] == "–" and not missing and list(runs) == ["GRPO", "AntiSD", "SD"]


def test_what_is_no_run_is_one_clear_line(tmp_path, capsys):
    assert study.main(["keep", str(tmp_path / "no")]) == 2
    assert capsys.readouterr().err == f"error: config file {tmp_path / 'no' / 'config.yaml'} cannot be read: No such file or directory\n"


def test_a_step_without_a_number_keeps_its_place():
    rows = [{"step": n, "actor/entropy": 1.0} | ({"antisd/u_mean": n} if n != 2 else {}) for n in (1, 2, 3, 4)]
    columns = study.compact(study.Run("run", {}, rows), {})["columns"]
    assert columns == {"student": [1.0] * 4, "u": [1.0, None, 3.0, 4.0]}
    assert study.ends([study.Record(columns, 4, {})], "u", 3) == "2 → 2"


def test_ends_and_the_open_gate():
    run = study.Record({"length": [1, 2, 3, 4, 5, 50, 6, 7, 8, 9, 10], "lambda": [0.0] * 5 + [0.2, 0.0, 0.2, 0.2, 0.2, 0.2]}, 4, {})
    assert study.ends([run], "length", 100) == "3 → 8" and study.ends([run], "teacher", 100) == "–"
    assert study.open_share([run], 100) == "83%" and study.open_share([run], 7) == "50%"


def test_tables_and_figures_come_from_what_was_kept_alone_and_say_what_is_missing(kept, tmp_path):
    document = tmp_path / "STUDY.md"
    document.write_text("# Head\n\n<!-- tables -->\nold\n<!-- end -->\n\nfindings\n")
    study.tables(kept, document)
    text = document.read_text()
    assert text.startswith("# Head\n") and text.endswith("\nfindings\n") and "old" not in text
    assert "| AntiSD | 2 | 0.688 @20 |" in text and (kept / "main.png").stat().st_size > 5000
    assert "Not run yet: no gate (study_methods/antisd_no_gate)" in text
    study.tables(kept, document)
    assert document.read_text() == text


def test_the_readme_and_the_study_hold_what_is_made_of_the_kept_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "draw", lambda *_: None)
    for name, written in (
        ("STUDY.md", study.tables),
        ("README.md", lambda kept, path: study.put(path, study.markdown(study.summary(kept)) + "\n")),
    ):
        source = (ROOT / "benchmarks" / name) if name == "STUDY.md" else ROOT / name
        copy = tmp_path / name
        copy.write_text(source.read_text())
        written(ROOT / "benchmarks" / "study", copy)
        assert copy.read_text() == source.read_text(), "python benchmarks/study.py tables"


def test_the_summary_by_hand(kept):
    rows = {row[0]: row[1:] for row in study.summary(kept, (0, 10, 20, 30))}
    # Eighths: grpo 1 and 2, 3 and 4, 5 and 4.
    assert rows["GRPO"] == ["2", "0.188", "0.438", "0.562 (0.500 … 0.625)", ""] and rows["ascent on the reverse KL"] == [
        "0",
        "",
        "",
        "",
        "",
    ]
    assert rows[""] == ["seeds", "step 0", "10", "20", "30"]


def test_every_run_of_the_questions_is_asked_for_by_a_sweep(monkeypatch):
    monkeypatch.chdir(ROOT)
    there = set()
    for file, outputs in {
        "embedded": [],
        "study_methods": [],
        "study_settings": [],
        "study_long": [],
        "study_more": [],
        "study_base": ["weak", "hard", "easy", "continual"],
    }.items():
        for option in [[f"output=runs/sweeps/{o}"] for o in outputs] or [[]]:
            there |= {
                str(j.folder.relative_to("runs/sweeps")).rpartition("-seed")[0] for j in jobs(f"configs/sweeps/{file}.yaml", option)[1]
            }
    asked = {name for q in study.QUESTIONS for name in (q.reference[1], *q.others.values())}
    assert asked == there


def test_puzzles_are_hard_or_easy_and_held_out_ones_are_apart(tmp_path):
    study.write_puzzles(tmp_path)
    rows = {p.stem: [json.loads(line) for line in p.read_text().splitlines()] for p in tmp_path.iterdir()}
    assert {k: len(v) for k, v in rows.items()} == {"hard": 634, "hard_eval": 109, "easy": 1058, "easy_eval": 147}
    assert not {r["problem"] for r in rows["hard"]} & {r["problem"] for r in rows["hard_eval"]}
