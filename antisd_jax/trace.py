"""`antisd trace`: what the self-teacher says of every token of some rollouts, sampled from a checkpoint of a run.

`antisd trace RUN [--step=N] [--problems=8] [--ids=ID,ID] [--samples=K] [--output=DIR]`
Problems are the next ones of the run's order at that checkpoint, or those with the given ids. DIR (RUN/trace-N) gets tokens.jsonl (a line a
token), rollouts.jsonl (a line a rollout), words.csv, and trace.html with all of it to be looked at.
"""

import csv
import io
import json
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from antisd_jax import config as configuration
from antisd_jax.arrays import named_key
from antisd_jax.checkpoint import CheckpointConfig, Checkpoints
from antisd_jax.errors import UserError
from antisd_jax.files import write_atomically
from antisd_jax.log import make_folder, say
from antisd_jax.model.parameters import abstract
from antisd_jax.model.sharding import rows_per_step, use_mesh
from antisd_jax.objective.advantage import phi
from antisd_jax.problems import read_data
from antisd_jax.report.trace import write_trace
from antisd_jax.rewards.pool import Pool
from antisd_jax.score import exact_products
from antisd_jax.steps import Grading, build_policy, privileged, roll_out, student_scores, teacher_scores
from antisd_jax.text.data import Order


@dataclass(frozen=True)
class TraceConfig:
    """step: of the checkpoint; -1 the last. problems: how many, where no ids are given. samples: of each; 0: as many as in the run. least:
    times that a word stands in the rollouts, below which it is not in the table. deliberation, shortcut: words that are summed up together."""

    step: int = -1
    problems: int = 8
    ids: tuple[str, ...] = ()
    samples: int = 0
    output: str = ""
    least: int = 5
    deliberation: tuple[str, ...] = ("Wait", "Let", "Maybe", "But", "Hmm", "Alternatively", "Perhaps")
    shortcut: tuple[str, ...] = ("So", "Therefore", "Thus", "answer", "boxed")

    def __post_init__(self):
        for name, least in (("problems", 1), ("samples", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: got {getattr(self, name)}, wanted at least {least}")


def trace(run: str, t: TraceConfig) -> Path:
    """Sample, score, write; the page. Raises UserError for what the user can mend."""
    folder = Path(run)
    config = configuration.build(configuration.Config, configuration.read_yaml(folder / "config.yaml"))
    policy, _ = build_policy(config)
    with closing(Checkpoints(folder / "checkpoints", CheckpointConfig(), read_only=True)) as checkpoints, use_mesh(policy.mesh):
        step = checkpoints.choose(None if t.step < 0 else t.step)
        weights, record = checkpoints.restore_weights(step, abstract(policy.model, policy.mesh))
    problems = chosen(t, read_data(policy, config, folder)[1], config.seed, record["cursor"])
    ways, k, temperature = rows_per_step(policy.mesh), t.samples or config.samples, config.sampling.temperature
    if len(problems) % ways:
        raise UserError(f"problems: {len(problems)} does not divide over data × fsdp × expert = {ways}")
    with use_mesh(policy.mesh), exact_products(policy.dtype), Pool(config.reward) as pool:
        grading = Grading(policy, pool, problems, k)
        rollouts, _ = roll_out(policy, weights, problems, k, named_key(config.seed, step, "trace"), config.sampling, grading.ended)
        said, grades, _ = grading.verdicts()
        contexts = privileged(policy, problems, said, grades, config.seed, step)
        teacher, acts = teacher_scores(policy, weights, problems, contexts, rollouts, temperature)
        student = student_scores(policy, weights, problems, rollouts, temperature)
    out = make_folder(t.output or str(folder / f"trace-{step}"))
    said_of_gate = {"gate": gate_word(config.method.active_gate.statistic, record["gate"])}
    rows, tokens = [], []  # of a rollout each
    for i in range(len(contexts)):
        p, g = divmod(i, k)
        decode = policy.prompts.tokenizer.decode
        rows.append(
            {
                "step": step,
                "rollout": i,
                "problem": problems[p].id,
                "sample": g,
                "prompt": problems[p].problem,
                "response": said[p][g],
                "gold": problems[p].gold,
            }
            | {"outcome": grades[p][g].outcome, "extracted": grades[p][g].extracted, "context_source": contexts[i].source, **said_of_gate}
            | {"acts": bool(acts[i]), "privileged": decode(contexts[i].ids)}
        )
        n = int(rollouts.lengths[p, g])
        ids = rollouts.tokens[p, g, :n].tolist()
        texts = pieces(policy.prompts.tokenizer, ids)
        scores = (x[i, :n] for x in (student.logprobs, teacher.logprobs, student.entropies, teacher.entropies))
        of = ("rollout", "problem", "sample", "outcome", "context_source", "gate")
        tokens.append(token_rows({key: rows[-1][key] for key in of}, ids, texts, *scores))
    words = word_table([t for row, own in zip(rows, tokens) if row["acts"] for t in own], t.least)
    for name, lines in (("rollouts", rows), ("tokens", chain.from_iterable(tokens))):
        write_atomically(out / f"{name}.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["word", "count", "u_mean", "p_student", "p_teacher"], *(w.values() for w in words)])
    write_atomically(out / "words.csv", text.getvalue())
    groups = {"deliberation": t.deliberation, "shortcut": t.shortcut}
    page = write_trace(out, f"{folder.name} @{step}", rows, tokens, words, groups)
    say(f"{len(rows)} rollouts, {sum(map(len, tokens))} tokens: {page}")
    return page


def chosen(t: TraceConfig, problems: list, seed: int, cursor: int) -> list:
    """Those with the ids, or the next of the run's order."""
    if not t.ids:
        return Order(problems, seed).take(cursor, t.problems)
    known = {p.id: p for p in problems}
    if unknown := [i for i in t.ids if i not in known]:
        raise UserError(f"ids: the run's data has no problem {unknown[0]!r}; ids are like {next(iter(known))!r}")
    return [known[i] for i in t.ids]


def gate_word(statistic: str, record: dict) -> str:
    """How the gate stood at the checkpoint."""
    if statistic == "none":
        return "none"
    return "warm-up" if record["level"] is None else "open" if record["open"] else "closed"


def pieces(tokenizer, ids: list[int]) -> list[str]:
    """The text that each token adds; of characters that several tokens make up, all at the last of these."""
    out, start = [], 0
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[start:end])
        if text.endswith("\ufffd") and end < len(ids) and end - start < 8:
            out.append("")
        else:
            out.append(text)
            start = end
    return out


def token_rows(of: dict, ids, texts, s, t, student_entropy, teacher_entropy) -> list[dict]:
    """A record for every token of one rollout, which `of` names; log-probs and entropies in nats."""
    u = np.asarray(t, np.float64) - np.asarray(s, np.float64)
    columns = {
        "s": s,
        "t": t,
        "u": u,
        "minus_phi": -np.asarray(phi(u)),
        "student_entropy": student_entropy,
        "teacher_entropy": teacher_entropy,
    }
    columns = {name: [round(float(x), 5) for x in values] for name, values in columns.items()}
    return [of | {"position": j, "id": ids[j], "token": texts[j], **{name: x[j] for name, x in columns.items()}} for j in range(len(ids))]


def word_table(tokens: list[dict], least: int) -> list[dict]:
    """Of every token text without the spaces around it: count, mean u, mean probabilities; ascending in mean u."""
    found: dict[str, list] = {}
    for row in tokens:
        found.setdefault(row["token"].strip(), []).append((row["u"], row["s"], row["t"]))
    out = []
    for word, values in found.items():
        if word and len(values) >= least:
            u, s, t = np.array(values).T
            out.append(
                {"word": word, "count": len(values), "u_mean": u.mean(), "p_student": np.exp(s).mean(), "p_teacher": np.exp(t).mean()}
            )
    return sorted(out, key=lambda row: row["u_mean"])
