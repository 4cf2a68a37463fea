"""The page of `antisd trace`: rollouts with their tokens coloured by u, where teacher and student agree, and what is said of which words."""

from html import escape
from pathlib import Path

import numpy as np

from antisd_jax.files import write_atomically
from antisd_jax.report.figures import BLUE, GREY, RED, draw
from antisd_jax.report.page import STYLE as PAGE
from antisd_jax.text.words import first_word

RANGE = 2.0  # nats: |u| at which a colour is full
SHORT = 1500  # characters of a privileged prompt that is shown at once, beside its rollout
ROLLOUTS, TOKENS = 64, 4000  # shown on the page at most, and tokens of each; the JSONL files hold all
MARKS = """
.tokens { line-height: 1.9; font: 13px/1.8 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.tokens span { border-radius: 3px; } .two { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.scale { display: inline-block; width: 15rem; height: .7rem; border-radius: 4px; vertical-align: middle; }
td, th { padding: .15rem 1rem .15rem 0; text-align: right; font-variant-numeric: tabular-nums; } td:first-child, th:first-child { text-align: left; }
.wide { overflow-x: auto; } details summary { cursor: pointer; }
"""


def colour(u: float) -> str:
    """CSS of a token's ground: blue where the teacher suppresses it (u < 0), red where it boosts it; full at RANGE."""
    r, g, b = (int((BLUE if u < 0 else RED)[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({r},{g},{b},{min(abs(u) / RANGE, 1.0):.2f})"


def write_trace(
    folder: Path, name: str, rows: list[dict], tokens: list[list[dict]], words: list[dict], groups: dict[str, tuple[str, ...]]
) -> Path:
    """DIR/trace.html, and the density as a PNG beside it. rows: a rollout each; tokens: of each; words: ascending in mean u."""
    cards = "".join(card(row, own) for row, own in zip(rows[:ROLLOUTS], tokens))
    acting = [t for row, own in zip(rows, tokens) if row["acts"] for t in own]
    away = sum(not row["acts"] for row in rows)
    met = f"; {away} rollouts had no usable privileged context: their tokens stand below, and count in nothing" if away else ""
    left = f'<div class="faint">{len(rows) - ROLLOUTS} more rollouts are in rollouts.jsonl</div>' if len(rows) > ROLLOUTS else ""
    scale = ", ".join(f"{colour(u)}" for u in np.linspace(-RANGE, RANGE, 9))
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(name)} · trace</title><style>{PAGE}{MARKS}</style></head><body>
<h1>{escape(name)}</h1><div class="faint">{len(rows)} rollouts, {sum(map(len, tokens))} tokens; gate: {rows[0]["gate"]}{met}</div>
<p>u = t − s: the teacher suppresses −{RANGE:g} <span class="scale" style="background: linear-gradient(90deg, {scale})"></span> +{RANGE:g} boosts.
AntiSD rewards what it suppresses. Point at a token for its numbers.</p>
<h2>Words</h2><div class="two"><div class="card wide"><h3>suppressed most</h3>{word_rows([w for w in words if w["u_mean"] < 0][:12])}</div>
<div class="card wide"><h3>boosted most</h3>{word_rows([w for w in words[::-1] if w["u_mean"] > 0][:12])}</div><div class="card wide"><h3>lists</h3>{group_rows(acting, groups)}</div>
<div class="card"><h3>probabilities of the sampled tokens</h3>{density(folder, acting) if acting else ""}</div></div>
<h2>Rollouts</h2>{cards}{left}
</body></html>
"""
    write_atomically(folder / "trace.html", page)
    return folder / "trace.html"


def card(row: dict, tokens: list[dict]) -> str:
    """One rollout, coloured, and the prompt that the teacher was shown."""
    spans = []
    for t in tokens[:TOKENS]:
        numbers = f"{t['token']!r} u {t['u']:+.3f}  s {t['s']:.3f}  t {t['t']:.3f}  −φ {t['minus_phi']:+.3f}"
        numbers += f"  H student {t['student_entropy']:.3f}  teacher {t['teacher_entropy']:.3f}"
        spans.append(f'<span style="background:{colour(t["u"])}" title="{escape(numbers)}">{escape(t["token"])}</span>')
    if len(tokens) > TOKENS:
        spans.append(f"\n[… {len(tokens) - TOKENS} more tokens are in tokens.jsonl …]")
    good = "good" if row["outcome"] == "correct" else "bad"
    mean = f" · mean u {np.mean([t['u'] for t in tokens]):+.3f}" if tokens else ""
    acts = "" if row["acts"] else " · the term does not act: no usable privileged context"
    return (
        f'<div class="card" style="margin-bottom:1rem"><h3>{escape(str(row["problem"]))}, sample {row["sample"]} · '
        f'<span class="{good}">{escape(row["outcome"])}</span></h3><div class="faint">answer {escape(str(row["extracted"]))}, '
        f'wanted {escape(row["gold"])} · context {escape(row["context_source"])}{mean}{acts}</div><div class="two"><div>'
        f'<pre><b>{escape(row["prompt"])}</b></pre><div class="tokens">{"".join(spans)}</div></div>'
        f"<details{' open' if len(row['privileged']) < SHORT else ''}><summary>privileged prompt</summary><pre>{escape(row['privileged'])}</pre></details></div></div>"
    )


def word_rows(words: list[dict]) -> str:
    """A table of words."""
    if not words:
        return '<span class="faint">no word stands there often enough</span>'
    head = "<tr><th>word</th><th>count</th><th>mean u</th><th>p student</th><th>p teacher</th></tr>"
    lines = [
        f"<tr><td>{escape(w['word'])}</td><td>{w['count']}</td><td>{w['u_mean']:+.3f}</td><td>{w['p_student']:.3f}</td><td>{w['p_teacher']:.3f}</td></tr>"
        for w in words
    ]
    return f"<table>{head}{''.join(lines)}</table>"


def group_rows(tokens: list[dict], groups: dict[str, tuple[str, ...]]) -> str:
    """Of each list of words, and of all tokens: how often one of them stands there, and its mean u."""
    lines = []
    for name, words in [*groups.items(), ("all tokens", None)]:
        u = [t["u"] for t in tokens if words is None or first_word(t["token"]) in words]
        lines.append(f"<tr><td>{escape(name)}</td><td>{len(u)}</td><td>{f'{np.mean(u):+.3f}' if u else '–'}</td></tr>")
    return f"<table><tr><th>list</th><th>count</th><th>mean u</th></tr>{''.join(lines)}</table>"


def density(folder: Path, tokens: list[dict]) -> str:
    """How often the two give a sampled token which probabilities, on a logarithmic scale of colour."""
    p_student, p_teacher = (np.exp([t[key] for t in tokens]) for key in ("s", "t"))

    def plot(axes):
        from matplotlib.colors import LogNorm

        *_, image = axes.hist2d(p_student, p_teacher, bins=40, range=((0, 1), (0, 1)), norm=LogNorm(), cmap="viridis")
        axes.plot((0, 1), (0, 1), color=GREY, linewidth=1, linestyle=":")
        axes.set_xlabel("p student")
        axes.set_ylabel("p teacher")
        bar = axes.figure.colorbar(image, ax=axes, label="tokens")
        bar.outline.set_visible(False)

    return draw("density", plot, folder, (4.4, 3.8))
