"""The study's numbers: keeps what its run folders say, and makes every table and figure of STUDY.md from that.

python benchmarks/study.py puzzles --output=DIR     hard and easy puzzles, to train on and to be held out
python benchmarks/study.py keep RUN …               RUN/{config.yaml, metrics.jsonl, evaluations.jsonl} → benchmarks/study/SWEEP/RUN.json
python benchmarks/study.py tables                   benchmarks/study/ → tables and figures of benchmarks/STUDY.md, and README.md's table
"""

import argparse
import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from antisd_jax.config import Config, build, flatten, load, read_yaml
from antisd_jax.errors import UserError
from antisd_jax.report.figures import COLOURS, draw
from antisd_jax.report.groups import Run, read_run
from antisd_jax.results import Curve, markdown, speed_up
from antisd_jax.tiny.countdown import puzzles

HERE = Path(__file__).resolve().parent
DRAWS = 2000  # of a bootstrap
ENDS = 5  # steps at either end of a run that are compared
FALLEN = 0.75  # of its best accuracy: a run that ends below has collapsed
KEPT = {
    "critic/rewards/mean": "reward",
    "response_length/mean": "length",
    "response_length/clip_ratio": "cap",
    "actor/entropy": "student",
    "antisd/teacher_entropy": "teacher",
    "antisd/gate/statistic": "statistic",
    "antisd/gate/level": "level",
    "antisd/lambda": "lambda",
    "antisd/u_mean": "u",
    "antisd/term_mean": "term",
}


@dataclass(frozen=True)
class Question:
    """A table and a figure: what is compared with what, up to which step. Runs are SWEEP/NAME without "-seedN"."""

    key: str
    title: str
    last: int
    reference: tuple[str, str]
    others: dict[str, str]


def pair(key: str, title: str, runs: str, antisd: str = "antisd-lam_max0.2") -> Question:
    """GRPO and AntiSD in one setting; `runs` is SWEEP/{}SETTING."""
    return Question(key, title, 50, ("GRPO", runs.format("grpo")), {"AntiSD": runs.format(antisd)})


METHODS, SETTINGS = "study_methods/", "study_settings/{}-"
PLAIN = {"AntiSD": "embedded/antisd"}
GRPO = ("GRPO", "embedded/grpo")
CANDIDATES = {
    "band gate": "antisd_band_gate",
    "standardised": "antisd_standardised",
    "on words": "antisd_words",
    "as released": "antisd_released-sibling",
}
GATES = {
    "no gate": "antisd_no_gate",
    "gate 0.90": "antisd_gate_0.90",
    "gate 0.95": "antisd_gate_0.95",
    "student's gate": "antisd_student_gate",
}
TERMS = {
    "reverse KL": "antisd_reverse_kl",
    "multiplicative": "antisd_multiplicative",
    "no teacher": "antisd_no_teacher",
    "length bonus": "length_bonus",
}
QUESTIONS = (
    Question("main", "1 to 3. GRPO, AntiSD, SD", 100, GRPO, PLAIN | {"SD": "embedded/sd"}),
    Question("gates", "4. Gates", 50, GRPO, PLAIN | {k: METHODS + v for k, v in GATES.items()}),
    Question("terms", "5, 6. Terms, and the length bonus", 50, GRPO, PLAIN | {k: METHODS + v for k, v in TERMS.items()}),
    Question(
        "candidates", "7. Candidates, and the released code's choices", 50, GRPO, PLAIN | {k: METHODS + v for k, v in CANDIDATES.items()}
    ),
    Question(
        "contexts",
        "8. Contexts, beside AntiSD with its own",
        50,
        ("AntiSD", "embedded/antisd"),
        {k: f"{METHODS}antisd-{k}" for k in ("none", "feedback", "answer", "other", "shuffled")},
    ),
    Question(
        "lambda",
        "9. λ_max",
        50,
        GRPO,
        {f"λ {x}": f"study_settings/antisd-lam_max{x}" for x in (0.05, 0.5, 1.0)} | {"λ 0.2": "embedded/antisd"},
    ),
    pair("group_4", "10. 64 problems × 4 rollouts", SETTINGS + "problems64-samples4"),
    pair("group_16", "10. 16 problems × 16 rollouts", SETTINGS + "problems16-samples16"),
    pair("few", "10. 4 problems × 8 rollouts", SETTINGS + "problems4-samples8"),
    pair("weak", "11. Hard puzzles, a policy that gives up", "weak/{}", "antisd"),
    pair("hard", "11. Hard puzzles", "hard/{}", "antisd"),
    pair("easy", "11. Easy puzzles", "easy/{}", "antisd"),
    pair("continual", "11. Going on from GRPO's step 30", "continual/{}", "antisd"),
    pair("cap_64", "12. Cap of 64 tokens", SETTINGS + "response64"),
    pair("cap_256", "12. Cap of 256 tokens", SETTINGS + "response256"),
    pair("slow", "13. Learning rate 7.5e-5", SETTINGS + "lr7.5e-05"),
    pair("fast", "13. Learning rate 3e-4", SETTINGS + "lr0.0003"),
    Question("long", "14. The band gate at length", 100, GRPO, PLAIN | {"band gate": "study_long/antisd_band_gate"}),
    Question("more", "15. 4 problems × 8 rollouts, new seeds", 50, ("GRPO", "study_more/grpo"), {"AntiSD": "study_more/antisd-lam_max0.2"}),
    Question(
        "weakly",
        "16. The standardised term at λ_max 0.02",
        50,
        GRPO,
        PLAIN | {"standardised": "study_more/antisd_standardised-lam_max0.02"},
    ),
)


@dataclass(frozen=True)
class Record:
    """A run, compact. columns: name → one value a training step, None where it had none. solved: step → correct samples of each
    held-out puzzle."""

    columns: dict[str, list[float | None]]
    samples: int
    solved: dict[int, np.ndarray]


def compact(run: Run, changes: dict) -> dict:
    """What `record` reads: `changes` are the keys of its configuration that differ from the smoke run's.

    Raises UserError when the run has not exactly one benchmark.
    """
    rows = [row for row in run.rows if "actor/entropy" in row]
    columns = {short: [float(f"{row[key]:.5g}") if key in row else None for row in rows] for key, short in KEPT.items()}
    solved, samples = {}, 0
    for step, benchmarks in sorted(run.solved.items()):
        if len(benchmarks) != 1:
            raise UserError(f"{run.name}: wanted one benchmark, got {sorted(benchmarks)}")
        (problems,) = benchmarks.values()
        samples = len(problems[0])
        solved[step] = "".join(str(int(problems[i].sum())) for i in range(len(problems)))
    return {"changes": changes, "samples": samples, "columns": {k: v for k, v in columns.items() if set(v) - {None}}, "solved": solved}


def record(data: dict) -> Record:
    solved = {int(step): np.array([int(c) for c in text]) for step, text in data["solved"].items()}
    return Record(data["columns"], data["samples"], solved)


def keep(folders: list[str], into: Path) -> None:
    smoke = flatten(load([str(HERE.parent / "configs" / "smoke.yaml")], []))
    for folder in map(Path, folders):
        config = flatten(build(Config, read_yaml(folder / "config.yaml")))
        changes = {k: v for k, v in config.items() if smoke[k] != v and k != "output"}
        path = into / folder.parent.name / f"{folder.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(compact(read_run(folder), changes), ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{folder} → {path}, {path.stat().st_size:,} bytes")


def seeds(study: Path, name: str) -> dict[int, Record]:
    """seed → run, of the runs that are there."""
    found = {path.stem.rpartition("-seed")[2]: path for path in (study / name).parent.glob(f"{Path(name).name}-seed*.json")}
    return {int(seed): record(json.loads(path.read_text(encoding="utf-8"))) for seed, path in sorted(found.items())}


def shares(run: Record, steps: list[int]) -> np.ndarray:
    """[steps, puzzles] of correct samples."""
    return np.stack([run.solved[step] / run.samples for step in steps])


def common(runs: list[Record], last: int) -> list[int]:
    """Steps up to `last` at which all were evaluated."""
    return sorted(set.intersection(*({s for s in run.solved if s <= last} for run in runs)))


def bootstrap(differences: np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high) of differences [seeds, puzzles]: 95 % of draws of seeds and of puzzles, with replacement; the generator's seed is fixed."""
    rng = np.random.default_rng(0)
    count, size = differences.shape
    drawn = [differences[rng.integers(count, size=count)][:, rng.integers(size, size=size)].mean() for _ in range(DRAWS)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(differences.mean()), float(low), float(high)


def differences(runs: dict[int, Record], reference: dict[int, Record], last: int) -> tuple[np.ndarray, np.ndarray]:
    """(at the last common step, mean over all but the first) of accuracy minus the reference's, [seeds in both, puzzles]."""
    both = sorted(set(runs) & set(reference))
    steps = common([x[s] for s in both for x in (runs, reference)], last)
    gaps = np.stack([shares(runs[s], steps) - shares(reference[s], steps) for s in both])
    return gaps[:, -1], gaps[:, 1:].mean(1)


def curve(runs: list[Record], steps: list[int]) -> Curve:
    """The mean over runs."""
    return Curve("", {step: {"": float(np.mean([shares(run, [step]).mean() for run in runs]))} for step in steps})


def collapsed(run: Record, steps: list[int]) -> bool:
    found = shares(run, steps).mean(1)
    return bool(found[-1] < FALLEN * found.max())


def ends(runs: list[Record], column: str, last: int) -> str:
    """Mean of the first and of the last ENDS steps, over the runs; "–" where none has the column."""
    found = [[x for x in run.columns[column][:last] if x is not None] for run in runs if column in run.columns]
    if not found:
        return "–"
    return f"{np.mean([x[:ENDS] for x in found]):.3g} → {np.mean([x[-ENDS:] for x in found]):.3g}"


def open_share(runs: list[Record], last: int, warmup: int = 5) -> str:
    """Share of the steps after warm-up at which λ was above 0."""
    found = [np.array(run.columns["lambda"][warmup:last]) > 0 for run in runs if "lambda" in run.columns]
    return f"{np.mean(np.concatenate(found)):.0%}" if found else "–"


def fold(ratio: float | None) -> str:
    return "never" if ratio is None else f"{ratio:.2f}×"


HEAD = ["", "seeds", "at the last step", "difference", "of all steps", "speed-up", "of each seed", "collapsed"]
HEAD += ["length", "at the cap", "student's entropy", "teacher's entropy", "gate open"]


def line(label: str, runs: dict[int, Record], reference: dict[int, Record], last: int) -> list[str]:
    """A row of a table. Of the reference itself the differences are left out."""
    both = sorted(set(runs) & set(reference))
    mine, theirs = [runs[s] for s in both], [reference[s] for s in both]
    steps = common([*mine, *theirs], last)
    compared = ["–"] * 4
    if runs is not reference:
        each = [fold(speed_up(curve([a], steps), curve([b], steps))) for a, b in zip(mine, theirs)]
        gaps = ["{:+.3f} ({:+.3f} … {:+.3f})".format(*bootstrap(x)) for x in differences(runs, reference, last)]
        compared = [*gaps, fold(speed_up(curve(mine, steps), curve(theirs, steps))), ", ".join(each)]
    at_last = f"{curve(mine, steps).average(steps[-1]):.3f} @{steps[-1]}"
    row = [label, str(len(both)), at_last, *compared, f"{sum(collapsed(r, steps) for r in mine)} of {len(mine)}"]
    return [*row, *(ends(mine, c, last) for c in ("length", "cap", "student", "teacher")), open_share(mine, last)]


def table(question: Question, study: Path) -> tuple[list[list[str]], dict[str, dict[int, Record]], list[str]]:
    """(rows, the head first; label → runs that are there; what is missing)."""
    label, name = question.reference
    reference = seeds(study, name)
    names = {label: name} | question.others
    found = {label: reference} | {k: seeds(study, v) for k, v in question.others.items()}
    missing = [f"{k} ({names[k]})" for k, runs in found.items() if not set(runs) & set(reference)]
    there = {k: runs for k, runs in found.items() if set(runs) & set(reference)}
    return [HEAD, *(line(k, runs, reference, question.last) for k, runs in there.items())], there, missing


def draw_curves(axes, runs: dict[str, dict[int, Record]], last: int) -> None:
    """Accuracy against step: the mean over seeds bold, every seed faint."""
    for colour, (label, found) in zip(COLOURS, runs.items()):
        for run in found.values():
            steps = common([run], last)
            axes.plot(steps, shares(run, steps).mean(1), color=colour, alpha=0.35, linewidth=1)
        mean = curve(list(found.values()), common(list(found.values()), last))
        axes.plot(list(mean.steps), [mean.average(s) for s in mean.steps], color=colour, linewidth=2, marker="o", markersize=3, label=label)
    axes.set_xlabel("step")


def tables(study: Path, document: Path) -> None:
    parts = []
    for question in QUESTIONS:
        rows, runs, missing = table(question, study)
        parts.append(f"### {question.title}\n")
        if runs:
            draw(question.key, partial(draw_curves, runs=runs, last=question.last), study)
            parts.append(f"{markdown(rows)}\n\n![accuracy against step]({study.name}/{question.key}.png)\n")
        if missing:
            parts.append(f"Not run yet: {', '.join(missing)}.\n")
    put(document, "\n".join(parts))


def put(document: Path, text: str) -> None:
    """The text, in the place of what stood between the document's marks."""
    before, _, rest = document.read_text(encoding="utf-8").partition("<!-- tables -->\n")
    _, _, after = rest.partition("<!-- end -->")
    document.write_text(f"{before}<!-- tables -->\n{text}<!-- end -->{after}", encoding="utf-8")


SUMMARY = {
    "GRPO": "embedded/grpo",
    "AntiSD": "embedded/antisd",
    "SD": "embedded/sd",
    "AntiSD, the band gate": "study_long/antisd_band_gate",
    "AntiSD, the released code's choices": METHODS + "antisd_released-sibling",
    "ascent on the reverse KL": METHODS + "antisd_reverse_kl",
    "a length bonus instead of the teacher": METHODS + "length_bonus",
}


def summary(study: Path, steps: tuple[int, ...] = (0, 10, 20, 30, 50, 100)) -> list[list[str]]:
    """README.md's table: mean accuracy of the seeds, and least and most at the last step that there is."""
    out = [["", "seeds", *(f"step {s}" if not s else str(s) for s in steps)]]
    for label, name in SUMMARY.items():
        runs = list(seeds(study, name).values())
        there = [s for s in steps if runs and s in common(runs, s)]
        values = {s: [shares(run, [s]).mean() for run in runs] for s in there}
        cells = {s: f"{np.mean(v):.3f}" + (f" ({min(v):.3f} … {max(v):.3f})" if s == there[-1] else "") for s, v in values.items()}
        out.append([label, str(len(runs)), *(cells.get(s, "") for s in steps)])
    return out


def write_puzzles(folder: Path) -> None:
    """hard.jsonl, easy.jsonl and their held-out …_eval.jsonl: puzzles with one solution, and with three or more."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, held_out in (("train", False), ("eval", True)):
        chosen = [p for p in puzzles(0) if p.held_out == held_out]
        for name, wanted in (("hard", range(1, 2)), ("easy", range(3, 1000))):
            rows = [json.dumps(p.row(split, i)) for i, p in enumerate(chosen) if len(p.hits) in wanted]
            (folder / f"{name}{'_eval' if held_out else ''}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
            print(f"{name}, {split}: {len(rows)} puzzles")


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("puzzles").add_argument("--output", type=Path, required=True)
    commands.add_parser("keep").add_argument("runs", nargs="+")
    commands.add_parser("tables")
    options = parser.parse_args(argv)
    try:
        if options.command == "puzzles":
            write_puzzles(options.output)
        elif options.command == "keep":
            keep(options.runs, HERE / "study")
        else:
            tables(HERE / "study", HERE / "STUDY.md")
        put(HERE.parent / "README.md", markdown(summary(HERE / "study")) + "\n")
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
