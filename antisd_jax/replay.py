"""`antisd replay`: the credit that other methods would have given the very same rollouts.

`antisd replay DUMP [DUMP …] --method=antisd,FILE.yaml [--lam=auto] [--output=FILE.json]`
DUMPs are a run's dumps/step-….npz (`dump_every`). Of each method: mean and deviation of the advantage of a token, the share that is positive, the loss,
the size of the term beside that of the group advantage, the mean term of correct and of wrong rollouts, and how far the advantages agree with
the first method's. λ is that of an open gate (`lam=auto`), or the number given, or the run's own at that step (`lam=run`).
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from antisd_jax import config as configuration
from antisd_jax.arrays import masked_mean
from antisd_jax.dump import Dump, read_dump
from antisd_jax.errors import UserError, nearest
from antisd_jax.files import write_atomically
from antisd_jax.log import say
from antisd_jax.objective import gate as gates
from antisd_jax.objective.advantage import group_advantage, term_signal, token_advantage
from antisd_jax.objective.loss import row_weights
from antisd_jax.results import markdown
from antisd_jax.steps import term_weights, word_ids
from antisd_jax.text.prompt import load_tokenizer

PRESETS = Path("configs/methods")


@dataclass(frozen=True)
class ReplayConfig:
    """method: configuration files or names of configs/methods, the reference first. lam: auto (λ_max, an open gate), run (that step's
    own), or a number."""

    method: tuple[str, ...] = ()
    lam: str = "auto"
    output: str = ""


def credit(dump: Dump, config, lam: float, words: tuple[int, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    """(advantages, λ · term) of every token, [N R], under the method of a configuration."""
    method, lengths = config.method, dump.rollouts.lengths.reshape(-1)
    if method.needs_teacher and dump.teacher is None:
        raise UserError(f"method {method.name} needs a teacher's scores, and step {dump.about['step']} was dumped without")
    gate = method.active_gate
    gauged = not gate.adaptive or dump.about["statistic"] == gate.statistic and (dump.gate.level is not None or not lam)
    if not gauged or method.term.outlier and not dump.gate.moments[0]:
        raise UserError(f"method {method.name} goes by its own warm-up, which the run of this dump did not have: dump a run of that method")
    strengths = gates.strengths(gate, dump.gate, dump.teacher, lengths, method.lam_max)
    weights = term_weights(words, method.term, dump.rollouts, dump.acts, strengths)
    mask = np.arange(dump.student.logprobs.shape[1]) < lengths[:, None]
    limit = method.term.outlier * dump.gate.deviation if method.term.outlier else np.inf
    sequence = group_advantage(dump.rewards, method.normalise).reshape(-1).astype(np.float32)
    t = term_signal(method.term, dump.teacher, dump.rollouts.lengths, mask.shape[1])
    advantage = np.asarray(token_advantage(sequence, dump.student.logprobs, t, weights, lam, method.term, mask, limit))
    return np.where(mask, advantage, 0.0), np.where(mask, advantage - sequence[:, None], 0.0)


def statistics(dump: Dump, config, advantage: np.ndarray, term: np.ndarray, reference: np.ndarray) -> dict:
    """Numbers of one method on one step; tokens count alike."""
    lengths, stopped = dump.rollouts.lengths.reshape(-1), dump.rollouts.stopped.reshape(-1)
    mask = np.arange(advantage.shape[1]) < lengths[:, None]
    counted = stopped if config.optim.mask_truncated else np.ones(len(lengths), bool)
    losses = row_weights(lengths, counted, config.optim.aggregation, advantage.shape[1])
    right = mask & (dump.rewards.reshape(-1, 1) == 1)
    sequence = advantage - term
    a, b = advantage[mask].astype(float), reference[mask].astype(float)
    same = a.std() > 0 and b.std() > 0
    return {
        "advantage_mean": masked_mean(advantage, mask),
        "advantage_std": float(a.std()),
        "positive_share": float((a > 0).mean()),
        "pg_loss": -float((losses[:, None] * advantage).sum()),
        "term_size": float(np.sqrt((term[mask] ** 2).mean()) / max(np.sqrt((sequence[mask] ** 2).mean()), 1e-12)),
        "term_mean_correct": _mean(term, right),
        "term_mean_wrong": _mean(term, mask & ~right),
        "term_length_correlation": _correlation(term.sum(axis=1), lengths),
        "correlation": float(np.corrcoef(a, b)[0, 1]) if same else float("nan"),
        "sign_agreement": float((np.sign(a) == np.sign(b)).mean()),
    }


def _mean(x, mask) -> float:
    return float(x[mask].mean()) if mask.any() else float("nan")


def _correlation(x, y) -> float:
    return float(np.corrcoef(x, y)[0, 1]) if np.std(x) > 0 and np.std(y) > 0 else float("nan")


def replay(paths: list[str], r: ReplayConfig) -> list[dict]:
    """A row for every dump and method, printed as a table. Raises UserError for what the user can mend."""
    if not paths or not r.method:
        raise UserError("antisd replay takes dumps of steps and --method=NAME,…")
    files, rows = [method_file(method) for method in r.method], []
    for path in map(Path, paths):
        dump, reference = read_dump(path), None
        for file in files:
            config = configuration.load([*map(str, path.parent.parent.glob("config.yaml")), file], [])  # loss and masks are the run's
            needed = config.method.term.words
            words = word_ids(load_tokenizer(path.parent.parent / "model"), needed) if needed else ()
            advantage, term = credit(dump, config, strength(r, dump, config), words)
            reference = advantage if reference is None else reference
            found = statistics(dump, config, advantage, term, reference)
            rows.append({"step": dump.about["step"], "method": config.method.name} | {k: round(float(v), 6) for k, v in found.items()})
    say(markdown([list(rows[0]), *([f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows)]))
    if r.output:
        plain = [{k: None if v != v else v for k, v in row.items()} for row in rows]  # JSON has no NaN
        write_atomically(Path(r.output), json.dumps(plain, indent=1, allow_nan=False) + "\n")
    return rows


def method_file(method: str) -> str:
    """The configuration file that it names, or the preset's. Raises UserError naming the nearest preset."""
    presets = {path.stem: str(path) for path in PRESETS.glob("*.yaml")}
    if method not in presets and not Path(method).is_file():
        raise UserError(f"method: {method!r} is neither a file nor a name of {PRESETS}{nearest(method, presets)}")
    return presets.get(method, method)


def strength(r: ReplayConfig, dump: Dump, config) -> float:
    if r.lam in ("auto", "run"):
        return config.method.lam_max if r.lam == "auto" else dump.about["lambda"]
    try:
        lam = float(r.lam)
    except ValueError:
        lam = math.nan
    if not math.isfinite(lam):
        raise UserError(f"lam: got {r.lam!r}, wanted auto, run or a number")
    return lam
