"""Curves of one run as inline SVG, readable on a light and on a dark page."""

import io
from colorsys import hsv_to_rgb
from pathlib import Path

import numpy as np

BLUE, RED, GREEN, GREY = "#3b82c4", "#d9603b", "#3f9b6c", "#8a8f98"
COLOURS = (
    "#3b82c4",
    "#d9603b",
    "#3f9b6c",
    "#9a6bc2",
    "#c79a2b",
    "#2fa3a3",
    "#c25b8f",
    "#7a8b2f",
    "#8a5a3b",
    "#5b6ee1",
    "#b04848",
    "#4c9f9f",
)


def colours(count: int) -> list[str]:
    """So many different ones: those above, then hues a golden angle apart."""
    more = (hsv_to_rgb(i * 0.618 % 1, 0.8, 0.5 + 0.3 * (i % 2)) for i in range(count - len(COLOURS)))
    return [*COLOURS[:count], *("#" + "".join(f"{round(255 * x):02x}" for x in rgb) for rgb in more)]


STYLE = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "text.color": GREY, "axes.labelcolor": GREY}
STYLE |= {"axes.edgecolor": GREY, "xtick.color": GREY, "ytick.color": GREY, "legend.frameon": False, "axes.spines.top": False}
WINDOW = 5  # steps of the rolling mean


def rolling(values: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """Mean over the last `window` values at each place, over fewer at the start."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def benchmarks(rows: list[dict]) -> list[str]:
    """ "NAME/avg@k" of every benchmark, in the order of the log."""
    found = dict.fromkeys(key.removeprefix("eval/") for row in rows for key in row if "/avg@" in key)
    return [key for key in found if not key.endswith(("_low", "_high"))]


class Curves:
    """Reads columns out of metrics.jsonl rows and draws panels of them."""

    def __init__(self, rows: list[dict]):
        self.rows = rows

    def column(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of the rows that have the key."""
        pairs = [(r["step"], r[key]) for r in self.rows if key in r]
        steps, values = zip(*pairs) if pairs else ((), ())
        return np.array(steps), np.array(values, float)

    def line(self, axes, key: str, label: str, colour: str) -> None:
        """The raw curve faint, its rolling mean bold."""
        steps, values = self.column(key)
        if len(steps):
            axes.plot(steps, values, color=colour, alpha=0.4, linewidth=1)
            axes.plot(steps, rolling(values), color=colour, linewidth=2, label=label)

    def accuracy(self, axes) -> None:
        steps, values = self.column("eval/average")
        if not len(steps):
            return
        names = benchmarks(self.rows)
        for name in names if len(names) > 1 else ():
            axes.plot(*self.column(f"eval/{name}"), linewidth=1, alpha=0.7, label=name)
        axes.fill_between(
            steps, self.column("eval/average_low")[1], self.column("eval/average_high")[1], color=BLUE, alpha=0.18, linewidth=0
        )
        label = "average" if len(names) > 1 else names[0]
        axes.plot(steps, values, color=BLUE, marker="o", markersize=4, linewidth=2, label=label)
        for i in {0, len(steps) - 1}:
            axes.annotate(f"{values[i]:.2f}", (steps[i], values[i]), xytext=(0, 6), textcoords="offset points", ha="center", color=BLUE)

    def reward(self, axes) -> None:
        self.line(axes, "critic/rewards/mean", "all", BLUE)
        self.line(axes, "critic/rewards/completed_mean", "completed", GREEN)

    def entropy(self, axes) -> None:
        self.line(axes, "actor/entropy", "student", BLUE)
        self.line(axes, "antisd/teacher_entropy", "teacher", RED)

    def gate(self, axes) -> None:
        steps, values = self.column("antisd/gate/statistic")
        if len(steps):
            axes.plot(steps, values, color=RED, linewidth=1.5, label="H")
        for key, style, label in (("antisd/gate/up", "--", "opens"), ("antisd/gate/down", ":", "closes")):
            steps, values = self.column(key)
            if len(steps):
                axes.plot(steps, values, color=GREY, linestyle=style, linewidth=1.2, label=label)
        steps, lam = self.column("antisd/lambda")
        if len(steps):
            right = axes.twinx()
            right.fill_between(steps, 0, lam, step="mid", color=BLUE, alpha=0.15, linewidth=0)
            right.set_ylim(0, max(1.0, 2 * lam.max()))
            right.set_ylabel("λ (shaded)", color=BLUE)
            right.tick_params(colors=BLUE)
            for side in right.spines.values():
                side.set_visible(False)

    def length(self, axes) -> None:
        self.line(axes, "response_length/mean", "mean", BLUE)
        steps, share = self.column("response_length/clip_ratio")
        if len(steps):
            right = axes.twinx()
            right.plot(steps, share, color=RED, linewidth=1.2, alpha=0.8)
            right.set_ylim(0, 1)
            right.set_ylabel("share at the cap", color=RED)
            right.tick_params(colors=RED)
            for side in right.spines.values():
                side.set_visible(False)

    def term(self, axes) -> None:
        self.line(axes, "antisd/u_mean", "u", BLUE)
        self.line(axes, "antisd/term_mean", "term", RED)


PANELS = (
    ("Accuracy on held-out problems", "accuracy"),
    ("Reward", "reward"),
    ("Entropy (nats)", "entropy"),
    ("Gate: teacher statistic and λ", "gate"),
    ("Response length (tokens)", "length"),
    ("u = t − s, and the term", "term"),
)


def draw(name: str, plot, folder: Path | None = None, size: tuple[float, float] = (4.4, 3.0), legend: bool = True) -> str:
    """The figure that plot(axes) makes, as SVG text, "" when it drew nothing; with a folder also FOLDER/NAME.png, on white. Without `legend` the
    page has one for all of its figures, and the picture has it below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context(STYLE | {"svg.hashsalt": name}):
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        axes.spines["right"].set_visible(False)
        plot(axes)
        drawn, named = axes.has_data(), len(axes.get_legend_handles_labels()[0])
        axes.grid(color=GREY, alpha=0.15)
        axes.set_axisbelow(True)
        if named and legend:
            axes.legend(loc="best", fontsize=9)
        buffer = io.StringIO()
        if drawn:
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        if drawn and folder:
            if named and not legend:
                figure.set_size_inches(size[0], size[1] + 0.19 * named)
                figure.legend(loc="outside lower left", fontsize=9)
            figure.savefig(folder / f"{name}.png", dpi=200, facecolor="white")
        plt.close(figure)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :] if drawn else ""


def panels(rows: list[dict]) -> list[tuple[str, str]]:
    """(title, SVG) of every panel that the rows have numbers for."""
    curves, out = Curves(rows), []
    for title, name in PANELS:

        def plot(axes, name=name):
            getattr(curves, name)(axes)
            axes.set_xlabel("step")

        if svg := draw(name, plot, size=(4.4, 2.9)):
            out.append((title, svg))
    return out
