"""Known failure modes, seen in the metrics of a run and named with the number that gave them away. Pure."""

from dataclasses import dataclass
from itertools import accumulate
from math import sqrt
from statistics import pvariance

MODES = ("capped", "diverging", "falling", "collapse", "drift", "over-ascent", "flat", "blind")
TEACHER = "antisd/teacher_entropy"
SURE = 3.0  # standard errors: what a reward falls by is more than these, or it is noise


@dataclass(frozen=True)
class WatchdogConfig:
    """Levels at which a warning is given, and what a warning does."""

    stop: tuple[str, ...] = ()  # modes that end the run; every mode warns [–; ours]
    window: int = 10  # steps over which a trend is judged [steps; ours]
    capped: float = 0.5  # warns above this share of responses at the length cap [share; ours]
    sibling: float = 0.25  # warns below this share of contexts that show a worked solution [share; ours]
    reward_fall: float = 0.8  # warns when the reward, a mean over the window, is below this multiple of its best [multiple; ours]
    entropy_floor: float = 0.01  # warns below this entropy of the teacher at the run's first step [nats; ours]
    entropy_fall: float = 0.3  # warns when the student's entropy is below this multiple of its first [multiple; ours]
    entropy_rise: float = 1.3  # warns when responses grow and the teacher's entropy is above this multiple of its first [multiple; ours]
    probs_diff: float = 0.01  # warns above this mean difference between sampler's and trainer's probability of a token [–; ours]


def watch(history: list[dict], w: WatchdogConfig) -> dict[str, str]:
    """Failure mode → sentence, for the last of a run's training steps (one dict of metrics a step)."""
    if not history:
        return {}
    now, first = history[-1], history[0]
    then = history[-1 - w.window] if len(history) > w.window else {}
    capped, entropy = now["response_length/clip_ratio"], now["actor/entropy"]
    completed, before = (row.get("critic/rewards/completed_mean") for row in (now, then))  # where a rollout completed
    teacher, begun = (next((row[TEACHER] for row in rows if TEACHER in row), None) for rows in ([now], history))  # where a context acted
    out = {}
    if capped > w.capped:
        out["capped"] = f"{capped:.0%} of the responses run to the length cap"
    judged = completed is not None and before is not None
    if judged and capped > then["response_length/clip_ratio"] + 0.1 and completed < before - 0.05:
        out["diverging"] = f"the length-cap share rose to {capped:.0%} while the reward of completed rollouts fell to {completed:.3f}"
    best, last, error = reward_means(history, w.window)
    if last < w.reward_fall * best and last < best - max(0.05, SURE * error):
        out["falling"] = f"the reward fell from {best:.3f} to {last:.3f}, means of {w.window} steps"
    if entropy < w.entropy_fall * first["actor/entropy"]:
        out["collapse"] = f"entropy collapse: the student's fell from {first['actor/entropy']:.4f} to {entropy:.4f} nats"
    if now["training/rollout_probs_diff_mean"] > w.probs_diff:
        out["drift"] = f"sampler and trainer disagree by {now['training/rollout_probs_diff_mean']:.4f} in mean token probability"
    rising = then and now["response_length/mean"] > then["response_length/mean"]
    if rising and teacher is not None and teacher > w.entropy_rise * begun:
        out["over-ascent"] = (
            f"over-ascent: teacher entropy rose from {begun:.3f} to {teacher:.3f} nats and responses grow; the gate watches only its fall"
        )
    if begun is not None and begun < w.entropy_floor:
        out["flat"] = f"the teacher's entropy is {begun:.4f} nats from the start: a gate on it has little to steer by"
    if "antisd/context/sibling" not in now:
        return out
    shown = now["antisd/context/sibling"] + now["antisd/context/solution"]
    if shown < w.sibling:
        out["blind"] = (
            f"only {shown:.0%} of the contexts show a worked solution: elsewhere the term rests on the answer or the feedback alone"
        )
    return out


def reward_means(history: list[dict], window: int) -> tuple[float, float, float]:
    """(the best, the last) mean reward over so many steps, and the standard error of their difference; zeros before there are so many."""
    rewards = [row["critic/rewards/mean"] for row in history]
    sums = [0.0, *accumulate(rewards)]
    means = [(end - start) / window for start, end in zip(sums, sums[window:])]
    if not means:
        return 0.0, 0.0, 0.0
    best = means.index(max(means))
    spread = pvariance(rewards[best : best + window]) + pvariance(rewards[-window:])
    return means[best], means[-1], sqrt(spread / max(window - 1, 1))


def story(history: list[dict], w: WatchdogConfig) -> list[tuple[int, str, str]]:
    """(step, mode, sentence) each time that a mode sets in, over a whole run."""
    out, before = [], {}
    for n, row in enumerate(history, 1):
        now = watch(history[:n], w)
        out += [(row["step"], mode, sentence) for mode, sentence in now.items() if mode not in before]
        before = now
    return out
