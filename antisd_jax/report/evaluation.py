"""The page of `antisd evaluate`: a table, pass@k curves and the difficulty of the problems, with the figures as PNG beside it."""

from functools import partial
from html import escape
from pathlib import Path

import numpy as np

from antisd_jax.files import write_atomically
from antisd_jax.report.figures import COLOURS, draw
from antisd_jax.report.page import STYLE as PAGE


def write_evaluation(folder: Path, numbers: dict, correct: dict[str, np.ndarray]) -> Path:
    """DIR/report.html, pass_at_k.png and problems.png. numbers: results.json; correct: [P] correct samples by benchmark."""
    cards = []
    for title, name, plot in (("pass@k", "pass_at_k", _passes), ("Problems by the share of samples that solve them", "problems", _shares)):
        svg = draw(name, partial(plot, benchmarks=numbers["benchmarks"], correct=correct), folder)
        cards.append(f'<div class="card"><h3>{title}</h3>{svg}</div>')
    average = numbers["average"]
    several = len(numbers["benchmarks"]) > 1
    head = f"<h3>{'Average' if several else 'avg@k'}</h3><div class='number'>{100 * average['mean']:.1f} %</div>"
    head += f"<div class='faint'>95 % [{100 * average['low']:.1f}, {100 * average['high']:.1f}] over problems</div>"
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(numbers["name"])} · evaluation</title><style>{PAGE} .wide {{ overflow-x: auto; }} th {{ text-align: left; font-weight: 600; }}
td, th {{ padding: .15rem 1.1rem .15rem 0; white-space: nowrap; }}</style></head><body>
<h1>{escape(numbers["name"])}</h1><div class="faint">evaluation</div>
<h2>Result</h2><div class="grid"><div class="card">{head}</div></div>
<h2>Benchmarks</h2><div class="card wide">{_table(numbers["benchmarks"])}</div>
<h2>Figures</h2><div class="grid">{"".join(cards)}</div>
<p class="faint">bands and brackets: 95 % bootstrap intervals over problems; generations.jsonl holds every response</p>
</body></html>
"""
    write_atomically(folder / "report.html", page)
    return folder / "report.html"


def _table(benchmarks: dict) -> str:
    def cell(x: dict | None) -> str:
        if x is None:
            return "–"
        return f"{100 * x['mean']:.1f} <span class='faint'>[{100 * x['low']:.1f}, {100 * x['high']:.1f}]</span>"

    head = "".join(f"<th>{h}</th>" for h in ("benchmark", "problems", "samples", "avg@k", "maj@k", "pass@k", "cut off", "mean tokens"))
    lines = []
    for name, d in benchmarks.items():
        k = d["samples"]
        cells = [escape(name), d["problems"], k, cell(d["avg"]), cell(d.get("maj")), cell(d["pass"][str(k)])]
        cells += [f"{100 * d['clip_ratio']:.1f} %", f"{d['response_length']:.0f}"]
        lines.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _passes(axes, benchmarks: dict, correct: dict) -> None:
    for (name, d), colour in zip(benchmarks.items(), COLOURS * len(benchmarks)):
        ks = [int(k) for k in d["pass"]]
        mean, low, high = ([d["pass"][str(k)][what] for k in ks] for what in ("mean", "low", "high"))
        axes.fill_between(ks, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(ks, mean, color=colour, linewidth=2, marker="o" if len(ks) < 10 else None, markersize=4, label=name)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("k")


def _shares(axes, benchmarks: dict, correct: dict) -> None:
    edges = np.linspace(0, 1, 9)
    width = 0.9 * (edges[1] - edges[0]) / len(benchmarks)
    middles = (edges[:-1] + edges[1:]) / 2
    for i, ((name, d), colour) in enumerate(zip(benchmarks.items(), COLOURS * len(benchmarks))):
        counts, _ = np.histogram(correct[name] / d["samples"], edges)
        axes.bar(middles + (i - (len(benchmarks) - 1) / 2) * width, counts / len(correct[name]), width, color=colour, label=name)
    axes.set_xlabel("share of samples that are correct")
    axes.set_ylabel("share of problems")
