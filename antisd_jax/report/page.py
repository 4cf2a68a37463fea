"""report.html: one self-contained page of a run."""

from html import escape
from pathlib import Path

from antisd_jax.config import Config, build, read_yaml
from antisd_jax.errors import UserError
from antisd_jax.files import read_jsonl, write_atomically
from antisd_jax.report.figures import benchmarks, panels
from antisd_jax.watchdog import WatchdogConfig, story

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --card: #f6f7f9; --text: #1d2129; --faint: #6a7079; --good: #2f8a5b; --bad: #c4502d; }
@media (prefers-color-scheme: dark) { :root { --ground: #15181d; --card: #1f242b; --text: #e6e8eb; --faint: #98a0aa; --good: #5fc48f; --bad: #ee8a66; } }
body { margin: 0 auto; max-width: 1180px; padding: 1.2rem; background: var(--ground); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; } .faint { color: var(--faint); }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); }
.numbers { grid-template-columns: repeat(auto-fit, minmax(min(100%, 230px), 1fr)); }
.card { background: var(--card); border-radius: 8px; padding: .8rem 1rem; overflow: hidden; } .card h3 { margin: 0 0 .3rem; font-size: .95rem; }
.card svg { display: block; width: 100%; height: auto; } .number { font-size: 1.6rem; font-weight: 600; } .good { color: var(--good); } .bad { color: var(--bad); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0 0; font: 13px/1.45 ui-monospace, monospace; }
table { border-collapse: collapse; } td { padding: .1rem .9rem .1rem 0; } td:last-child { text-align: right; font-variant-numeric: tabular-nums; }
"""


def write_report(run: str | Path) -> Path:
    """Write RUN/report.html from the run's files. Raises UserError when there is nothing to report."""
    folder = Path(run)
    rows = read_jsonl(folder / "metrics.jsonl")
    if not rows:
        raise UserError(f"{folder} has no metrics.jsonl with complete rows: not a run folder, or nothing has been logged yet")
    levels = build(Config, {"watchdog": read_yaml(folder / "config.yaml").get("watchdog", {})}).watchdog
    settings = (folder / "config.yaml").read_text(encoding="utf-8")
    cards = "".join(f'<div class="card"><h3>{escape(title)}</h3>{svg}</div>' for title, svg in panels(rows))
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(folder.name)} · antisd</title><style>{STYLE}</style></head><body>
<h1>{escape(folder.name)}</h1><div class="faint">step {rows[-1]["step"]}</div>
<h2>Result</h2><div class="grid numbers">{headline(rows)}</div>
<h2>Warnings</h2><div class="card">{warnings(failures(rows, levels))}</div>
<h2>Curves</h2><div class="faint">raw faint, mean of 5 steps bold</div><div class="grid">{cards}</div>
<h2>Rollouts</h2><div class="grid">{rollout_cards(read_jsonl(folder / "rollouts.jsonl"))}</div>
<h2>Time of a step</h2><div class="card">{time_table(rows)}</div>
<h2>Configuration</h2><details class="card"><summary>resolved</summary><pre>{escape(settings)}</pre></details>
</body></html>
"""
    write_atomically(folder / "report.html", page)
    return folder / "report.html"


def headline(rows: list[dict]) -> str:
    """The numbers that one looks for first; an absent one is said to be absent."""
    seen = [row for row in rows if "eval/average" in row]
    if not seen:
        return _number("accuracy", "–", "no evaluation in this run")
    first, last, best = seen[0], seen[-1], max(seen, key=lambda row: row["eval/average"])
    names = benchmarks(rows)
    what = names[0] if len(names) == 1 else f"average of {len(names)} benchmarks"
    gain = 100 * (last["eval/average"] - first["eval/average"])
    interval = f"95 % [{last['eval/average_low']:.3f}, {last['eval/average_high']:.3f}] over problems"
    problems = sum(value for key, value in first.items() if key.startswith("eval/") and key.endswith("/problems"))
    return "".join(
        [
            _number(f"{what} at step {first['step']}", f"{first['eval/average']:.3f}", f"{problems} held-out problems"),
            _number(f"{what} at step {last['step']}", f"{last['eval/average']:.3f}", interval),
            _number("change", f'<span class="{"good" if gain > 0 else "bad"}">{gain:+.1f} points</span>', "absolute, last step"),
            _number(f"best, at step {best['step']}", f"{best['eval/average']:.3f}", "chosen by this very number"),
        ]
    )


def failures(rows: list[dict], levels: WatchdogConfig) -> list[tuple[int, str, str]]:
    """When which failure mode set in, and the number that gave it away."""
    return story([row for row in rows if "actor/entropy" in row], levels)


def warnings(told: list[tuple[int, str, str]]) -> str:
    if not told:
        return '<span class="faint">none of the known failure modes</span>'
    return "".join(f'<div>step {step} · <span class="bad">{mode}</span> · {escape(sentence)}</div>' for step, mode, sentence in told)


def _number(title: str, number: str, note: str) -> str:
    return f'<div class="card"><h3>{escape(title)}</h3><div class="number">{number}</div><div class="faint">{note}</div></div>'


def rollout_cards(rows: list[dict], each: int = 2) -> str:
    """A few correct and a few other rollouts of the first and of the last logged step."""
    if not rows:
        return '<div class="faint">none logged</div>'
    cards = []
    for step in sorted({rows[0]["step"], rows[-1]["step"]}):
        here = [r for r in rows if r["step"] == step]
        right = [r for r in here if r["outcome"] == "correct"][:each]
        for r in right + [r for r in here if r["outcome"] != "correct"][:each]:
            colour = "good" if r["outcome"] == "correct" else "bad"
            context = f" · context {r['context_source']} · mean u {r['u_mean']:+.2f}" if "u_mean" in r else ""
            cards.append(
                f'<div class="card"><h3>step {step} · <span class="{colour}">{escape(r["outcome"])}</span></h3>'
                f'<div class="faint">{r["response_tokens"]} tokens, {escape(r["finish_reason"])}{escape(context)}</div>'
                f"<pre><b>{escape(r['prompt'][:600])}</b>\n\n{escape(_middle(r['response']))}</pre></div>"
            )
    return "".join(cards)


def _middle(text: str, most: int = 1600) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}\n[… {len(text) - most} characters …]\n{text[-most // 2 :]}"


def time_table(rows: list[dict]) -> str:
    """Median seconds of each phase over the steps that had it; the first, which compiles, does not sway a median."""
    steps = [r for r in rows if "timing_s/step" in r]
    if not steps:
        return '<span class="faint">no training step yet</span>'
    names = sorted({k for r in steps for k in r if k.startswith("timing_s/")}, key=lambda k: (k == "timing_s/step", k))
    lines = []
    for name in names:
        values = sorted(r[name] for r in steps if name in r)
        lines.append(f"<tr><td>{name.removeprefix('timing_s/')}</td><td>{values[len(values) // 2]:.3f} s</td></tr>")
    return f"<table>{''.join(lines)}</table><div class='faint'>medians over the steps that had the phase</div>"
