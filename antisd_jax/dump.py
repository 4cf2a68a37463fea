"""Everything of a step's rollouts and scores in one compressed file, for `antisd replay` and for other people's notebooks.

RUN/dumps/step-000010.npz, arrays without padding, N rollouts of P problems in the order problem, sample:

    lengths [N]               response tokens            prompt_lengths [P], context_lengths [N]   (0: no usable context)
    tokens [Σ lengths]        response ids               prompts, contexts                         ids, one after another
    sampled, s, t             log-probs of the tokens: sampler's, student's, teacher's (nats, at the sampling temperature)
    student_entropy, teacher_entropy                     nats
    rewards [P G], stopped [N], acts [N]                 about                                     JSON: step, λ, gate, ids, sources, outcomes

t and teacher_entropy are absent where there was no teacher.
"""

import io
import json
import os
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from antisd_jax.errors import UserError
from antisd_jax.objective.gate import GateState
from antisd_jax.types import Rollouts, Scores


@dataclass
class Dump:
    """A step, as the objective wants it: arrays [N R], padded with 0; rewards [P G]. gate: its state after this step."""

    rollouts: Rollouts
    student: Scores
    teacher: Scores | None
    rewards: np.ndarray
    acts: np.ndarray
    gate: GateState
    about: dict


def write_dump(
    folder: Path,
    step: int,
    problems,
    contexts,
    grades,
    rollouts: Rollouts,
    student,
    teacher,
    rewards,
    acts,
    gate: GateState,
    statistic: str,
    lam: float,
) -> Path:
    """See the module. Written whole or not at all. statistic: the gate's."""
    lengths = rollouts.lengths.reshape(-1)
    mask = np.arange(rollouts.tokens.shape[-1]) < lengths[:, None]
    flat = {"tokens": rollouts.tokens, "sampled": rollouts.logprobs, "s": student.logprobs, "student_entropy": student.entropies}
    if teacher is not None:
        flat |= {"t": teacher.logprobs, "teacher_entropy": teacher.entropies}
    out = {name: np.asarray(x).reshape(mask.shape)[mask] for name, x in flat.items()}
    out |= {"lengths": lengths.astype(np.int32), "stopped": rollouts.stopped.reshape(-1), "rewards": rewards, "acts": np.asarray(acts)}
    shown = [c.ids for c in contexts] or [[] for _ in lengths]
    for name, rows in (("prompt", [p.prompt_ids for p in problems]), ("context", shown)):
        out[f"{name}s"] = np.concatenate([np.asarray(r, np.int32) for r in rows])
        out[f"{name}_lengths"] = np.array([len(r) for r in rows], np.int32)
    about = {
        "step": step,
        "lambda": lam,
        "gate": asdict(gate),
        "statistic": statistic,
        "responses": mask.shape[1],
        "ids": [p.id for p in problems],
    }
    about |= {"sources": [c.source for c in contexts], "outcomes": [g.outcome for group in grades for g in group]}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, about=np.array(json.dumps(about)), **out)
    path = folder / "dumps" / f"step-{step:06d}.npz"
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, path)
    return path


def read_dump(path: Path) -> Dump:
    """Raises UserError when it is no such file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            x = {name: file[name] for name in file.files}
        about = json.loads(str(x["about"]))
        n, size, lengths = len(x["lengths"]), about["responses"], x["lengths"]
        mask = np.arange(size) < lengths[:, None]

        def padded(name: str):
            out = np.zeros(mask.shape, x[name].dtype)
            out[mask] = x[name]
            return out

        group = x["rewards"].shape
        rollouts = Rollouts(
            padded("tokens").reshape(*group, size),
            lengths.reshape(group),
            padded("sampled").reshape(*group, size),
            x["stopped"].reshape(group),
        )
        teacher = Scores(padded("t"), padded("teacher_entropy")) if "t" in x else None
        gate = GateState.of(about["gate"])
        return Dump(rollouts, Scores(padded("s"), padded("student_entropy")), teacher, x["rewards"], x["acts"].reshape(n), gate, about)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise UserError(f"{path} is no dump of a step that can be read: {type(e).__name__}: {e}") from None
