"""`antisd report RUN RUN …`: any number of runs on one page, and as PNG, CSV and JSON."""

import csv
import io
import json
from html import escape
from pathlib import Path

import numpy as np

from antisd_jax.errors import UserError
from antisd_jax.files import write_atomically
from antisd_jax.report.figures import COLOURS, draw, rolling
from antisd_jax.report.groups import Group, grouped, read_run, results_table
from antisd_jax.report.page import STYLE as PAGE

WIDE = ".wide { overflow-x: auto; } th { text-align: left; } td, th { padding: .15rem 1.1rem .15rem 0; white-space: nowrap; text-align: right; }"
WIDE += " td:first-child, th:first-child { text-align: left; } .missing li { color: var(--faint); }"
# (title, file, [(key, dashes)]): raw faint, rolling mean bold; a second key of a panel is dashed.
DYNAMICS = (
    ("Reward: all, and of completed rollouts (dashed)", "reward", (("critic/rewards/mean", "-"), ("critic/rewards/completed_mean", "--"))),
    ("Share of responses at the length cap", "cap", (("response_length/clip_ratio", "-"),)),
    ("Entropy (nats): student, and teacher (dashed)", "entropy", (("actor/entropy", "-"), ("antisd/teacher_entropy", "--"))),
    ("Gate: statistic over its warm-up level, and λ (dashed)", "gate", (("gate/relative", "-"), ("antisd/lambda", "--"))),
    ("Response length (tokens)", "length", (("response_length/mean", "-"),)),
    ("Mean u, and mean term (dashed)", "term", (("antisd/u_mean", "-"), ("antisd/term_mean", "--"))),
)


def write_comparison(runs: list[str], output: str) -> Path:
    """OUTPUT/report.html, …png, curves.csv, table.csv, results.json. Raises UserError for what is no run."""
    groups = grouped([read_run(Path(run)) for run in runs])
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output: {output} is no folder")
    folder.mkdir(parents=True, exist_ok=True)
    evaluated = [g for g in groups if g.steps()]
    missing = [f"{g.name}: no evaluation that all of its {len(g.runs)} runs have" for g in groups if not g.steps()]
    missing += [f"{g.name}: no generations at hand, so no interval and no pass@k" for g in evaluated if g.interval(g.steps()[-1]) is None]
    missing += [f"{g.name}: one seed, so that its interval is over problems alone" for g in evaluated if len(g.runs) == 1]
    rows = results_table(evaluated) if evaluated else []
    curves = [line for g in evaluated for line in accuracy_rows(g)]
    for name, lines in (("table", rows), ("curves", [["run", "seeds", "step", "average", "low", "high"], *curves])):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        write_atomically(folder / f"{name}.csv", text.getvalue())
    passes = {g.name: {b: v.tolist() for b, v in g.passes(g.steps()[-1]).items()} for g in evaluated}
    times = {g.name: phase_times(g) for g in groups}
    numbers = {"table": rows, "curves": curves, "pass_at_k": passes, "seconds": times, "missing": missing, "runs": runs}
    write_atomically(folder / "results.json", json.dumps(numbers, indent=1) + "\n")
    figures = [(title, draw(file, plot, folder)) for title, file, plot in plots(groups, evaluated, curves)]
    write_atomically(folder / "report.html", page(folder.name, groups, rows, figures, times, missing))
    return folder / "report.html"


def accuracy_rows(group: Group) -> list[list]:
    """[name, seeds, step, Average, low, high] of every evaluated step; no interval where it cannot be had."""
    curve, out = group.curve(), []
    for step in group.steps():
        low, high = group.interval(step) or (None, None)
        out.append([group.name, len(group.runs), step, round(curve.average(step), 6), low, high])
    return out


def phase_times(group: Group) -> dict[str, float]:
    """Median seconds of each phase over all steps and seeds."""
    found: dict[str, list[float]] = {}
    for run in group.runs:
        for row in run.rows:
            for key, value in row.items():
                if key.startswith("timing_s/") and "timing_s/step" in row:
                    found.setdefault(key.removeprefix("timing_s/"), []).append(value)
    return {name: float(np.median(values)) for name, values in found.items()}


def plots(groups: list[Group], evaluated: list[Group], curves: list[list]):
    """(title, file, what draws it) of every figure that there are numbers for."""
    if evaluated:
        yield "Accuracy on held-out problems, 95 % over seeds and problems", "accuracy", lambda axes: draw_accuracy(axes, evaluated, curves)
    for title, file, keys in DYNAMICS:
        if any(len(series(g, key)[0]) for g in groups for key, _ in keys):
            yield title, file, lambda axes, keys=keys: draw_dynamics(axes, groups, keys)
    if any(g.passes(g.steps()[-1]) for g in evaluated):
        yield "pass@k at the last step", "pass_at_k", lambda axes: draw_passes(axes, evaluated)


def draw_accuracy(axes, groups: list[Group], curves: list[list]) -> None:
    for g, colour in zip(groups, COLOURS * len(groups)):
        mine = [row for row in curves if row[0] == g.name]
        steps, means = [row[2] for row in mine], [row[3] for row in mine]
        axes.plot(steps, means, color=colour, linewidth=2, marker="o", markersize=3, label=g.name)
        if all(row[4] is not None for row in mine):
            axes.fill_between(steps, [row[4] for row in mine], [row[5] for row in mine], color=colour, alpha=0.12, linewidth=0)
    axes.set_xlabel("step")


def series(group: Group, key: str) -> tuple[np.ndarray, np.ndarray]:
    if key != "gate/relative":
        return group.column(key)
    steps, h = group.column("antisd/gate/statistic")
    levels = dict(zip(*group.column("antisd/gate/level")))
    kept = [(s, x / levels[s]) for s, x in zip(steps, h) if levels.get(s)]
    return np.array([s for s, _ in kept]), np.array([x for _, x in kept])


def draw_dynamics(axes, groups: list[Group], keys) -> None:
    for g, colour in zip(groups, COLOURS * len(groups)):
        name = g.name
        for key, dashes in keys:
            steps, values = series(g, key)
            if len(steps):
                axes.plot(steps, values, color=colour, alpha=0.2, linewidth=1, linestyle=dashes)
                axes.plot(steps, rolling(values), color=colour, linewidth=1.8, linestyle=dashes, label=name)
                name = None  # a group stands once in the legend
    axes.set_xlabel("step")


def draw_passes(axes, groups: list[Group]) -> None:
    for g, colour in zip(groups, COLOURS * len(groups)):
        found = g.passes(g.steps()[-1])
        if found:
            size = min(len(v) for v in found.values())
            axes.plot(
                range(1, size + 1),
                np.mean([v[:size] for v in found.values()], axis=0),
                color=colour,
                linewidth=2,
                marker="o",
                markersize=3,
                label=g.name,
            )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set_xlabel("k")


def html_table(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = ["".join(f"<th>{escape(str(x))}</th>" for x in head)] + ["".join(f"<td>{escape(str(x))}</td>" for x in row) for row in body]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def page(name: str, groups: list[Group], rows, figures: list[tuple[str, str]], times: dict, missing: list[str]) -> str:
    cards = "".join(f'<div class="card"><h3>{escape(title)}</h3>{svg}</div>' for title, svg in figures)
    phases = sorted({p for t in times.values() for p in t}, key=lambda p: (p == "step", p))
    seconds = [["run", *phases], *([name_, *(f"{t[p]:.2f}" if p in t else "–" for p in phases)] for name_, t in times.items())]
    said = "".join(f"<li>{escape(m)}</li>" for m in missing)
    table = html_table(rows) if rows else '<span class="faint">no run was evaluated</span>'
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(name)} · antisd</title><style>{PAGE}{WIDE}</style></head><body>
<h1>{escape(name)}</h1><div class="faint">{sum(len(g.runs) for g in groups)} runs in {len(groups)} groups that differ in more than the seed</div>
<h2>Results</h2><div class="card wide">{table}<div class="faint">per cent; of each group the mean over seeds. Average@best is chosen by that very
number. Speed-up: the first row's best step over the first step at which this row reaches its Average.</div></div>
<h2>Curves</h2><div class="faint">raw faint, mean of 5 steps bold</div><div class="grid">{cards}</div>
<h2>Seconds of a step</h2><div class="card wide">{html_table(seconds)}<div class="faint">medians</div></div>
{f'<h2>Missing</h2><ul class="missing">{said}</ul>' if missing else ""}
</body></html>
"""
