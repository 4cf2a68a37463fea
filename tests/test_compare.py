"""`antisd report RUN RUN …` on recorded runs, whose numbers are worked out by hand."""

import csv
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import yaml
from browser import readable

from antisd_jax.cli import main
from antisd_jax.config import dump, load
from antisd_jax.report.compare import plots
from antisd_jax.report.figures import colours, rolling
from antisd_jax.report.groups import grouped, hierarchical, read_run, reference, results_table

# Of two problems with four samples each, how many are right at steps 0, 10 and 20: seed → method → step → problem.
RIGHT = {
    0: {"grpo": [[1, 0], [2, 1], [3, 2]], "antisd": [[1, 0], [3, 2], [4, 2]], "sd": [[1, 0], [1, 0], [0, 0]]},
    1: {"grpo": [[1, 1], [2, 2], [2, 2]], "antisd": [[1, 1], [2, 2], [2, 3]], "sd": [[1, 1], [1, 0], [0, 0]]},
}


def recorded(folder, method: str, seed: int, right, teacher=True):
    """A run folder as training leaves it, with these results."""
    folder.mkdir()
    c = load([], [f"method.name={method}", f"method.lam_max={0.0 if method == 'grpo' else 0.5}", f"seed={seed}", f"output={folder}"])
    (folder / "config.yaml").write_text(dump(c))
    rows, generations = [], []
    for i, counts in enumerate(right):
        average = sum(counts) / 8
        row = {"step": 10 * i, "eval/average": average, "eval/set/avg@4": average, "eval/average_low": 0.0, "eval/average_high": 1.0}
        if i:
            row |= {"critic/rewards/mean": 0.1 * i + seed, "timing_s/step": 2.0 * i, "timing_s/gen": 1.0 * i, "actor/entropy": 1.0}
            row |= {
                "response_length/clip_ratio": 0.1 * i,
                "response_length/mean": 30.0,
                "training/rollout_probs_diff_mean": 0.0,
                "critic/rewards/completed_mean": 0.5,
            }
            row |= {"antisd/gate/statistic": 0.5, "antisd/gate/level": 0.4} if teacher and method != "grpo" else {}
        rows.append(row)
        for problem, count in enumerate(counts):
            for sample in range(4):
                outcome = "correct" if sample < count else "wrong"
                generations.append({"step": 10 * i, "benchmark": "set", "index": problem, "sample": sample, "outcome": outcome})
    for name, lines in (("metrics", rows), ("evaluations", generations)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    return [recorded(tmp_path / f"{m}-{seed}", m, seed, RIGHT[seed][m]) for m in ("grpo", "antisd", "sd") for seed in (0, 1)]


def test_seeds_are_one_group_and_the_table_is_that_of_their_means(runs, tmp_path, capsys):
    assert main(["report", *runs, f"--output={tmp_path / 'out'}"]) == 0
    with open(tmp_path / "out" / "table.csv", newline="") as file:
        table = list(csv.reader(file))
    # Means over seeds, eighths: grpo 3/16 7/16 9/16; antisd 3/16 9/16 11/16; sd 3/16 2/16 0. GRPO's best, 9/16 at step 20, AntiSD has at 10.
    assert table[0] == ["section", "run", "seeds", "set", "Average@best", "Average@last", "speed-up", "compared with", "difference"]
    assert table[1] == ["", "base", "2", "18.8", "18.8 @0", "18.8 @0", "–", "–", "–"]
    assert table[2] == ["", "grpo", "2", "56.2", "56.2 @20", "56.2 @20", "1.00×", "–", "–"]
    assert table[3][:8] == ["", "antisd", "2", "68.8", "68.8 @20", "68.8 @20", "2.00×", "grpo"]
    # Seeds 0 and 1, problems a and b: 4/4 − 3/4, 2/4 − 2/4; 2/4 − 2/4, 3/4 − 2/4. In a quarter of the draws each seed is taken alone, and its better problem alone.
    assert table[3][8] == "+12.5 (+0.0 … +25.0) @20"
    assert table[4] == ["", "sd", "2", "18.8", "18.8 @0", "0.0 @20", "never", "grpo", "-56.2 (-75.0 … -50.0) @20"]
    numbers = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row[:4] for row in numbers["curves"][:3]] == [["grpo", 2, 0, 3 / 16], ["grpo", 2, 10, 7 / 16], ["grpo", 2, 20, 9 / 16]]
    assert numbers["seconds"]["grpo"] == {"step": 3.0, "gen": 1.5} and numbers["missing"] == []
    for name in ("accuracy", "reward", "entropy", "gate", "pass_at_k"):
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "6 runs in 3 groups" in page and "Missing" not in page and page.count("<svg") == 7
    readable(page, tmp_path)
    assert "step 20 · " not in page and "none of the known failure modes" in page


def test_pass_at_k_is_the_share_of_subsets_that_hold_a_correct_sample(runs):
    groups = {g.name: g for g in grouped([read_run(Path(run)) for run in runs])}
    got = groups["grpo"].passes(20)["set"]
    for k in (1, 2, 3, 4):
        shares = []
        for seed in (0, 1):
            for count in RIGHT[seed]["grpo"][2]:
                picks = list(combinations([1] * count + [0] * (4 - count), k))
                shares.append(np.mean([max(pick) for pick in picks]))
        assert got[k - 1] == pytest.approx(np.mean(shares))


def test_intervals_resample_seeds_and_problems():
    same = [np.full((3, 5), 0.4)]
    assert hierarchical(same) == pytest.approx((0.4, 0.4))
    # One problem, two seeds that differ: both draws fall on one seed a quarter of the time each, so that the interval is all of [0, 1].
    assert hierarchical([np.array([[0.0], [1.0]])]) == (0.0, 1.0)
    # Seeds alike, many problems: the interval of a mean of coin tosses, ±1.96 · ½ / √400.
    tosses = np.tile(np.arange(400) % 2, (2, 1)).astype(float)
    low, high = hierarchical([tosses])
    assert low == pytest.approx(0.5 - 0.049, abs=0.006) and high == pytest.approx(0.5 + 0.049, abs=0.006)
    # Two benchmarks weigh alike, whatever their size.
    assert hierarchical([np.zeros((2, 3)), np.ones((2, 50))]) == (0.5, 0.5)


def changed(folder: str, **keys) -> str:
    """The run with these keys in its configuration: a section's values by its name, as in lengths={"response": 7}."""
    path = Path(folder) / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for section, values in keys.items():
        config[section] |= values
    path.write_text(yaml.safe_dump(config))
    return folder


def test_models_stand_apart_and_each_is_compared_with_its_own_grpo(tmp_path):
    right = {"small": {"grpo": [[1, 0], [2, 2], [3, 3]], "antisd": [[1, 0], [3, 3], [3, 3]]}}
    right["large"] = {"grpo": [[0, 0], [1, 0], [1, 1]], "antisd": [[0, 0], [1, 1], [2, 1]]}
    runs = [
        changed(recorded(tmp_path / f"{model}-{method}", method, 0, right[model][method]), model={"path": f"/models/{model}"})
        for model in ("small", "large")
        for method in ("antisd", "grpo")
    ]
    assert main(["report", *runs, f"--output={tmp_path / 'out'}"]) == 0
    tables = json.loads((tmp_path / "out" / "results.json").read_text())["tables"]
    assert list(tables) == ["small", "large"]
    assert [[row[0], *row[-3:-1]] for rows in tables.values() for row in rows[2:]] == [
        ["antisd", "2.00×", "grpo"],
        ["grpo", "1.00×", "–"],
    ] * 2
    assert (tmp_path / "out" / "accuracy-2.png").exists() and "<h2>large</h2>" in (tmp_path / "out" / "report.html").read_text()


def test_another_setting_has_a_grpo_of_its_own_or_says_what_it_is_compared_with(tmp_path):
    runs = []
    for n, (method, size, rate) in enumerate(
        [("grpo", 64, 1e-6), ("antisd", 64, 1e-6), ("antisd", 32, 1e-6), ("grpo", 32, 1e-6), ("sd", 32, 3e-6)]
    ):
        run = recorded(tmp_path / str(n), method, 0, RIGHT[0]["antisd"])
        runs.append(changed(run, lengths={"response": size}, eval={"response": size, "every": n + 1}, optim={"lr": rate}))
    groups = grouped([read_run(Path(run)) for run in runs])
    assert [g.name for g in groups] == [
        "grpo, response 64",
        "antisd, response 64",
        "antisd, response 32",
        "grpo, response 32",
        "sd",
    ]
    found = [getattr(reference(g, groups), "name", None) for g in groups]
    assert found == ["grpo, response 64", "grpo, response 64", "grpo, response 32", "grpo, response 32", None]
    assert [row[-3:] for row in results_table(groups)][-1] == ["–", "–", "–"], "no GRPO at this learning rate"
    assert {reference(g, groups[1:3]).name for g in groups[1:3]} == {"antisd, response 64"}, "no GRPO at all"


def test_seeds_at_different_steps_are_said_and_cut_to_what_all_have(runs, tmp_path):
    path = Path(runs[1]) / "metrics.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:2]))
    group = grouped([read_run(Path(run)) for run in runs[:2]])[0]
    assert group.steps() == [0, 10] and group.column("critic/rewards/mean")[0].tolist() == [10]
    assert main(["report", *runs, f"--output={tmp_path / 'out'}"]) == 0
    numbers = json.loads((tmp_path / "out" / "results.json").read_text())
    assert numbers["missing"] == ["grpo: its runs are at different steps (grpo-0 20, grpo-1 10); numbers are of what all have"]
    assert numbers["tables"][""][3][-1].endswith("@10"), "what both have"


def test_other_problems_give_no_interval_and_no_traceback(runs, tmp_path):
    path = Path(runs[1]) / "evaluations.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines() if '"index": 1' not in line))
    assert main(["report", *runs[:2], f"--output={tmp_path / 'out'}"]) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["missing"] == ["grpo: its runs have other problems, so no interval"]


def test_pass_at_k_is_drawn_as_far_as_the_benchmarks_with_most_samples_go(tmp_path):
    run = Path(recorded(tmp_path / "a", "grpo", 0, RIGHT[0]["grpo"]))
    with open(run / "evaluations.jsonl", "a") as file:
        for sample in range(2):
            file.write(json.dumps({"step": 20, "benchmark": "few", "index": 0, "sample": sample, "outcome": "correct"}) + "\n")
    group = grouped([read_run(run)])
    title, name, _ = list(plots([(group[0], "#000000")], []))[-1]
    assert (title, name) == ("pass@k at the last step, of set", "pass_at_k")


def test_what_is_missing_is_said(runs, tmp_path):
    lone = recorded(tmp_path / "lone", "antisd_words", 0, RIGHT[0]["antisd"])
    (tmp_path / "lone" / "evaluations.jsonl").unlink()
    blind = recorded(tmp_path / "blind", "antisd_band_gate", 0, [])
    (tmp_path / "blind" / "metrics.jsonl").write_text(json.dumps({"step": 1, "critic/rewards/mean": 0.5}) + "\n")
    assert main(["report", runs[0], lone, blind, f"--output={tmp_path / 'out'}"]) == 0
    missing = json.loads((tmp_path / "out" / "results.json").read_text())["missing"]
    assert missing == [
        "grpo: one seed, so that its interval is over problems alone",
        "antisd_words: no generations at hand, so no interval and no pass@k",
        "antisd_band_gate: no evaluation that all of its 1 runs have",
    ]
    assert all(m in (tmp_path / "out" / "report.html").read_text() for m in missing)


def test_groups_are_named_by_what_differs(tmp_path):
    folders = []
    for n, (method, lam, lr) in enumerate([("antisd", 0.2, 1e-6), ("antisd", 0.5, 1e-6), ("sd", 0.5, 1e-6), ("antisd", 0.5, 1e-6)]):
        folders.append(tmp_path / str(n))
        recorded(folders[-1], method, n, RIGHT[0]["antisd"])
        plain = yaml.safe_load((folders[-1] / "config.yaml").read_text())
        plain["method"]["lam_max"], plain["optim"]["lr"] = lam, lr
        plain["optim"]["micro_tokens"], plain["rollout"]["slots"] = 1024 * (n + 1), n  # which no number depends on
        (folders[-1] / "config.yaml").write_text(yaml.safe_dump(plain))
    groups = grouped([read_run(f) for f in folders])
    assert [(g.name, len(g.runs)) for g in groups] == [("antisd, lam_max 0.2", 1), ("antisd, lam_max 0.5", 2), ("sd", 1)]


def test_colours_do_not_come_again():
    assert len(set(colours(40))) == 40 and colours(40)[:3] == colours(3)


def test_a_rolling_mean_by_hand_and_what_is_no_run(tmp_path, capsys):
    assert rolling(np.array([1.0, 2, 3, 4, 5, 6]), 3).tolist() == [1, 1.5, 2, 3, 4, 5]
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty"), str(tmp_path / "empty"), f"--output={tmp_path / 'out'}"]) == 2
    assert "has no metrics.jsonl with complete rows" in capsys.readouterr().err
    assert main(["report", "a", "b"]) == 2 and "several and --output=DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: [", "config.yaml is not YAML"),
        ("- a", "config.yaml holds a list, wanted key: value lines"),
        (None, "config.yaml cannot be read: No such file"),
    ],
)
def test_a_run_without_its_configuration_is_one_clear_line(tmp_path, capsys, text, message):
    run = recorded(tmp_path / "run", "grpo", 0, RIGHT[0]["grpo"])
    (tmp_path / "run" / "config.yaml").unlink() if text is None else (tmp_path / "run" / "config.yaml").write_text(text)
    for options in ([], [f"--output={tmp_path / 'out'}"]):
        assert main(["report", run, *options]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_the_page_of_one_run_refuses_wrong_levels_and_takes_rows_that_lack_a_number(tmp_path, capsys):
    run = recorded(tmp_path / "run", "grpo", 0, [])
    few = {
        "critic/rewards/mean": 0.5,
        "actor/entropy": 1.0,
        "response_length/clip_ratio": 1.0,
        "response_length/mean": 9.0,
        "training/rollout_probs_diff_mean": 0.0,
    }
    rows = [few | {"step": step} for step in range(1, 25)]
    rows[2] |= {"critic/rewards/completed_mean": 0.5}
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["report", run]) == 0 == main(["report", run, f"--output={tmp_path / 'out'}"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "100% of the responses run to the length cap" in page and "diverging" not in page
    (tmp_path / "run" / "config.yaml").write_text("watchdog: {windw: 3}")
    assert main(["report", run]) == 2 and "unknown config key watchdog.windw" in capsys.readouterr().err


def test_the_same_seed_again_and_a_continuation_are_no_other_seeds(tmp_path):
    first = recorded(tmp_path / "a", "grpo", 0, RIGHT[0]["grpo"])
    copy = recorded(tmp_path / "b", "grpo", 0, RIGHT[0]["grpo"])
    more = [recorded(tmp_path / f"more-seed{s}", "grpo", s, RIGHT[s]["grpo"]) for s in (0, 1)]
    for s, run in enumerate(more):
        config = yaml.safe_load((Path(run) / "config.yaml").read_text())
        config["init"]["run"] = f"runs/grpo-seed{s}"
        (Path(run) / "config.yaml").write_text(yaml.safe_dump(config))
    groups = grouped([read_run(Path(r)) for r in (first, copy, *more)])
    assert [[r.name for r in g.runs] for g in groups] == [["a"], ["b"], ["more-seed0", "more-seed1"]]
    assert len({g.name for g in groups}) == 3
