"""`antisd report RUN RUN …`: any number of runs on one page, and as PNG, CSV and JSON."""

import csv
import io
import json
from html import escape
from pathlib import Path

import numpy as np

from antisd_jax.config import Config, build
from antisd_jax.errors import UserError
from antisd_jax.files import write_atomically
from antisd_jax.report.figures import colours, draw, rolling
from antisd_jax.report.groups import LAST, Group, Run, grouped, read_run, results_table
from antisd_jax.report.page import STYLE as PAGE
from antisd_jax.report.page import failures, warnings

WIDE = ".wide { overflow-x: auto; } th { text-align: left; } td, th { padding: .15rem 1.1rem .15rem 0; white-space: nowrap; text-align: right; }"
WIDE += " td:first-child, th:first-child { text-align: left; } .missing li { color: var(--faint); } h3 { font-size: .95rem; margin: .6rem 0 0; }"
WIDE += " .legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .8rem 0; } .legend i { display: inline-block; width: 1.1em; height: .28em;"
WIDE += " margin-right: .4em; vertical-align: middle; }"
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
    sections = {s: [g for g in groups if g.section == s] for s in dict.fromkeys(g.section for g in groups)}
    evaluated = {s: [g for g in members if g.steps()] for s, members in sections.items()}
    tables = {s: results_table(members) for s, members in evaluated.items() if members}
    curves = [line for members in evaluated.values() for g in members for line in accuracy_rows(g)]
    for name, lines in (("table", joined(tables)), ("curves", [["run", "seeds", "step", "average", "low", "high"], *curves])):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        write_atomically(folder / f"{name}.csv", text.getvalue())
    told = {g.title: {run.name: found for run in g.runs if (found := watched(run))} for g in groups}
    passes = {g.title: {b: v.tolist() for b, v in g.passes(g.steps()[-1]).items()} for members in evaluated.values() for g in members}
    missing, times = [line for g in groups for line in lacking(g)], {g.title: phase_times(g) for g in groups}
    numbers = {
        "tables": tables,
        "curves": curves,
        "pass_at_k": passes,
        "seconds": times,
        "failures": told,
        "missing": missing,
        "runs": runs,
    }
    write_atomically(folder / "results.json", json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
    parts = []
    for number, (name, members) in enumerate(sections.items(), 1):
        mark = f"-{number}" if len(sections) > 1 else ""
        painted = list(zip(members, colours(len(members))))
        figures = [(title, draw(file + mark, plot, folder, legend=False)) for title, file, plot in plots(painted, curves)]
        parts.append(section(name, painted, tables.get(name, []), figures))
    write_atomically(folder / "report.html", page(folder.name, groups, parts, told, times, missing))
    return folder / "report.html"


def joined(tables: dict[str, list[list[str]]]) -> list[list[str]]:
    """One table with the benchmarks of all; "–" stands for those that a section has not."""
    benchmarks = dict.fromkeys(name for rows in tables.values() for name in rows[0][2 : -len(LAST)])
    columns = ["section", "run", "seeds", *benchmarks, *LAST]
    lines = [{"section": name} | dict(zip(rows[0], row)) for name, rows in tables.items() for row in rows[1:]]
    return [columns, *([line.get(name, "–") for name in columns] for line in lines)]


def watched(run: Run) -> list[tuple[int, str, str]]:
    levels = {key.removeprefix("watchdog."): value for key, value in run.config.items() if key.startswith("watchdog.")}
    return failures(run.rows, build(Config, {"watchdog": levels}).watchdog)


def lacking(g: Group) -> list[str]:
    """What is not there, in words."""
    steps, ends = g.steps(), g.ends()
    out = []
    if min(ends) < max(ends):
        each = ", ".join(f"{run.name} {end}" for run, end in zip(g.runs, ends))
        out.append(f"{g.title}: its runs are at different steps ({each}); numbers are of what all have")
    if not steps:
        out.append(f"{g.title}: no evaluation that all of its {len(g.runs)} runs have")
    elif g.interval(steps[-1]) is None:
        other = all(steps[-1] in run.solved for run in g.runs)
        out.append(
            f"{g.title}: "
            + ("its runs have other problems, so no interval" if other else "no generations at hand, so no interval and no pass@k")
        )
    elif len(g.runs) == 1:
        out.append(f"{g.title}: one seed, so that its interval is over problems alone")
    return out


def accuracy_rows(group: Group) -> list[list]:
    """[name, seeds, step, Average, low, high] of every evaluated step; no interval where it cannot be had."""
    curve, out = group.curve(), []
    for step in group.steps():
        low, high = group.interval(step) or (None, None)
        out.append([group.title, len(group.runs), step, round(curve.average(step), 6), low, high])
    return out


def phase_times(group: Group) -> dict[str, float]:
    """Median seconds of each phase over the training steps that had it, of all seeds."""
    found: dict[str, list[float]] = {}
    for run in group.runs:
        for row in run.rows:
            for key, value in row.items():
                if key.startswith("timing_s/") and "actor/entropy" in row:
                    found.setdefault(key.removeprefix("timing_s/"), []).append(value)
    return {name: float(np.median(values)) for name, values in found.items()}


def plots(painted: list[tuple[Group, str]], curves: list[list]):
    """(title, file, what draws it) of every figure that there are numbers for; painted: groups and their colours."""
    evaluated = [(g, colour) for g, colour in painted if g.steps()]
    if evaluated:
        yield "Accuracy on held-out problems, 95 % over seeds and problems", "accuracy", lambda axes: draw_accuracy(axes, evaluated, curves)
    for title, file, keys in DYNAMICS:
        if any(len(series(g, key)[0]) for g, _ in painted for key, _ in keys):
            yield title, file, lambda axes, keys=keys: draw_dynamics(axes, painted, keys)
    passes = [(colour, g.name, found) for g, colour in evaluated if (found := g.passes(g.steps()[-1]))]
    if passes:
        most = max(len(v) for _, _, found in passes for v in found.values())
        names = sorted({b for _, _, found in passes for b, v in found.items() if len(v) == most})
        of = f", of {', '.join(names)}" if any(len(v) < most for _, _, found in passes for v in found.values()) else ""
        yield f"pass@k at the last step{of}", "pass_at_k", lambda axes: draw_passes(axes, passes, names, most)


def draw_accuracy(axes, painted: list[tuple[Group, str]], curves: list[list]) -> None:
    for g, colour in painted:
        mine = [row for row in curves if row[0] == g.title]
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


def draw_dynamics(axes, painted: list[tuple[Group, str]], keys) -> None:
    for g, colour in painted:
        name = g.name
        for key, dashes in keys:
            steps, values = series(g, key)
            if not len(steps):
                continue
            if key == "antisd/lambda":  # a switch: nothing to smooth
                axes.plot(steps, values, color=colour, linewidth=1.2, linestyle=dashes, drawstyle="steps-mid", label=name)
            else:
                axes.plot(steps, values, color=colour, alpha=0.35, linewidth=1, linestyle=dashes)
                axes.plot(steps, rolling(values), color=colour, linewidth=1.8, linestyle=dashes, label=name)
            name = None  # a group stands once in the legend
    axes.set_xlabel("step")


def draw_passes(axes, passes: list[tuple[str, str, dict]], benchmarks: list[str], most: int) -> None:
    for colour, name, found in passes:
        values = [found[b] for b in benchmarks if b in found and len(found[b]) == most]
        if values:
            axes.plot(range(1, most + 1), np.mean(values, axis=0), color=colour, linewidth=2, marker="o", markersize=3, label=name)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set_xlabel("k")


def html_table(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = ["".join(f"<th>{escape(str(x))}</th>" for x in head)] + ["".join(f"<td>{escape(str(x))}</td>" for x in row) for row in body]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def section(name: str, painted: list[tuple[Group, str]], rows: list[list[str]], figures: list[tuple[str, str]]) -> str:
    """One section of the page: its table, what the colours mean, its figures."""
    table = html_table(rows) if rows else '<span class="faint">no run was evaluated</span>'
    legend = "".join(f'<span><i style="background:{colour}"></i>{escape(g.name)}</span>' for g, colour in painted)
    cards = "".join(f'<div class="card"><h3>{escape(title)}</h3>{svg}</div>' for title, svg in figures)
    return f"""<h2>{escape(name or "Results")}</h2><div class="card wide">{table}</div>
<div class="legend">{legend}</div><div class="grid">{cards}</div>"""


def page(name: str, groups: list[Group], parts: list[str], told: dict, times: dict, missing: list[str]) -> str:
    phases = sorted({p for t in times.values() for p in t}, key=lambda p: (p == "step", p))
    seconds = [["run", *phases], *([name_, *(f"{t[p]:.2f}" if p in t else "–" for p in phases)] for name_, t in times.items())]
    alarms = "".join(f"<h3>{escape(t)}, {escape(run)}</h3>{warnings(lines)}" for t, runs in told.items() for run, lines in runs.items())
    said = "".join(f"<li>{escape(m)}</li>" for m in missing)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(name)} · antisd</title><style>{PAGE}{WIDE}</style></head><body>
<h1>{escape(name)}</h1><div class="faint">{sum(len(g.runs) for g in groups)} runs in {len(groups)} groups that differ in more than the seed.
Tables: per cent; of each group the mean over seeds; Average@best is chosen by that very number; speed-up: best step of what a row is compared with over the first
step at which the row reaches its Average; difference: in points, at the last step that both have, of equal seeds and problems, with its 95 % interval.
Curves: raw faint, mean of 5 steps bold.</div>
{"".join(parts)}
<h2>Warnings</h2><div class="card">{alarms or warnings([])}</div>
<h2>Seconds of a step</h2><div class="card wide">{html_table(seconds)}<div class="faint">medians over the training steps that had the phase</div></div>
{f'<h2>Missing</h2><ul class="missing">{said}</ul>' if missing else ""}
</body></html>
"""
