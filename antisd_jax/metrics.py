"""The numbers of one step under the names that dashboards know, and the rows of rollouts.jsonl."""

import numpy as np

from antisd_jax.arrays import masked_mean, response_mask
from antisd_jax.objective.advantage import group_advantage, term_signal, token_advantage, token_term
from antisd_jax.objective.gate import Gate, GateState, lower
from antisd_jax.objective.loss import importance_weight
from antisd_jax.rewards.grade import OUTCOMES
from antisd_jax.text.prompt import CONTROLS, SOURCES


def step_metrics(config, rollouts, grades, rewards, contexts, student, teacher, acts, weights, updates, lam: float, limit: float) -> dict:
    """One step's metrics. N rollouts, R response tokens: student and teacher Scores [N R] (teacher None when unused), grades [P][G],
    contexts N long, rewards [P G], acts [N], weights of the term [N R] or [N 1], updates the UpdateStats of each optimizer step."""
    lengths, stopped = rollouts.lengths.reshape(-1), rollouts.stopped.reshape(-1)
    mask = np.asarray(response_mask(lengths, student.logprobs.shape[1]))
    flat = rewards.reshape(-1)
    t = term_signal(config.method.term, teacher, rollouts.lengths, mask.shape[1])
    sequence = group_advantage(rewards, config.method.normalise).reshape(-1).astype(np.float32)
    advantage = np.asarray(token_advantage(sequence, student.logprobs, t, weights, lam, config.method.term, mask, limit))
    sampled = rollouts.logprobs.reshape(student.logprobs.shape)
    difference = np.abs(np.exp(sampled) - np.exp(student.logprobs))[mask]
    out = {
        "critic/rewards/mean": flat.mean(),
        "perf/response_tokens": int(rollouts.lengths.sum()),
        "critic/advantages/mean": masked_mean(advantage, mask),
        "actor/entropy": masked_mean(student.entropies, mask),
        "actor/pg_loss": np.mean([u.loss for u in updates]),
        "actor/pg_clipfrac": sum(u.clipped for u in updates) / mask.sum(),
        "actor/grad_norm": np.mean([u.grad_norm for u in updates]),
        "actor/lr": config.optim.lr,
        "response_length/mean": lengths.mean(),
        "response_length/max": lengths.max(),
        "response_length/clip_ratio": 1.0 - stopped.mean(),
        "training/rollout_probs_diff_mean": difference.mean(),
        "training/rollout_probs_diff_max": difference.max(),
        "perf/grade_seconds": np.mean([g.seconds for group in grades for g in group]),
        "groups/all_correct": (rewards == 1).all(axis=1).mean(),
        "groups/all_wrong": (rewards == 0).all(axis=1).mean(),
    }
    out |= mean_where("critic/rewards/completed_mean", flat, stopped)
    out |= {f"outcome/{name.replace(' ', '_')}": np.mean([g.outcome == name for group in grades for g in group]) for name in OUTCOMES}
    if updates[0].load is not None:
        out |= load_metrics(sum(u.load for u in updates))
    if teacher is not None:
        u, acting = teacher.logprobs - student.logprobs, mask & acts[:, None]
        term = np.asarray(token_term(student.logprobs, t, config.method.term, mask, limit))
        out |= mean_where("antisd/teacher_entropy", teacher.entropies, acting)
        out |= mean_where("antisd/u_mean", u, acting) | mean_where("antisd/u_abs_mean", np.abs(u), acting)
        out |= mean_where("antisd/term_mean", term, mask & (weights > 0))
        out |= {
            "antisd/term_share": masked_mean(np.broadcast_to(weights > 0, mask.shape), mask),
            "antisd/context/acting": acts.mean(),
            "antisd/context/overflow": np.mean([not c.ids for c in contexts]),
            "antisd/context/shortened": np.mean([c.shortened for c in contexts]),
        }
        out |= {f"antisd/context/{s}": np.mean([c.source == s for c in contexts]) for s in SOURCES + CONTROLS}
    return {k: float(v) for k, v in out.items()}


def mean_where(name: str, x: np.ndarray, mask: np.ndarray) -> dict:
    """{name: mean of x over the mask}; nothing for an empty mask, whose mean is not 0."""
    return {name: masked_mean(x, mask)} if mask.any() else {}


def acting_u(rollouts, student, teacher, acts) -> np.ndarray:
    """u of all response tokens that met a privileged context, in one row."""
    mask = np.asarray(response_mask(rollouts.lengths.reshape(-1), student.logprobs.shape[1])) & acts[:, None]
    return (teacher.logprobs - student.logprobs)[mask]


def correction_metrics(rollouts, student, cap: float) -> dict:
    """How far the policy that is updated has gone from the one that sampled: student Scores [N R] before the update, `cap` of the weights.

    rollout_corr/kl, k3_kl: KL(sampler ‖ trainer) a token, by −d and by e^d − 1 − d with d = s − sampled. rollout_is_…: the truncated
    weights that multiply the loss, their least and largest, the share that was truncated, and the effective sample size (Σw)² / n Σw².
    """
    mask = np.asarray(response_mask(rollouts.lengths.reshape(-1), student.logprobs.shape[1]))
    sampled = rollouts.logprobs.reshape(student.logprobs.shape)[mask].astype(np.float64)
    d = student.logprobs[mask] - sampled
    w = np.asarray(importance_weight(sampled + d, sampled, cap))
    out = {
        "kl": -d.mean(),
        "k3_kl": (np.expm1(d) - d).mean(),
        "rollout_is_mean": w.mean(),
        "rollout_is_min": w.min(),
        "rollout_is_max": w.max(),
    }
    out |= {"rollout_is_truncated": (np.exp(d) > cap).mean(), "rollout_is_eff_sample_size": w.sum() ** 2 / (w.size * (w**2).sum())}
    return {f"rollout_corr/{k}": float(v) for k, v in out.items()}


def load_metrics(load: np.ndarray) -> dict:
    """How evenly a step's tokens fell on the experts: load [L E] counts.

    moe/load_max: the busiest expert's share over the even one, mean over layers (1 is even, E is one expert for all).
    moe/load_entropy: entropy of the shares over that of even ones. moe/idle_experts: share of experts that took nothing.
    """
    share = load / load.sum(axis=1, keepdims=True)
    entropy = -(share * np.log(np.maximum(share, 1e-30))).sum(axis=1)
    return {
        "moe/load_max": (share.max(axis=1) * load.shape[1]).mean(),
        "moe/load_entropy": entropy.mean() / np.log(load.shape[1]),
        "moe/idle_experts": (load == 0).mean(),
    }


def gate_metrics(gate: Gate, state: GateState, h: float, lam: float) -> dict:
    """The gate's log: H, H_warm, τ_down, τ_up, g and λ of this step (of an adaptive gate the mean over responses). H_warm and the thresholds exist after warm-up only."""
    out = {"antisd/gate/open": float(state.open), "antisd/lambda": lam}
    if not np.isnan(h):
        out["antisd/gate/statistic"] = h
    if state.level is not None:
        out |= {"antisd/gate/level": state.level, "antisd/gate/down": lower(gate, state.level), "antisd/gate/up": gate.up * state.level}
        out |= {"antisd/gate/high": gate.high * state.level} if gate.high else {}
    return out


def rollout_rows(step: int, problems, said, grades, rollouts, contexts, student, teacher, limit: int) -> list[dict]:
    """The first `limit` rollouts of a step (all when negative) as rows of rollouts.jsonl."""
    group = len(said[0])
    count = len(problems) * group if limit < 0 else min(limit, len(problems) * group)
    rows = []
    for i in range(count):
        p, g = divmod(i, group)
        n, grade = int(rollouts.lengths[p, g]), grades[p][g]
        row = {
            "step": step,
            "id": problems[p].id,
            "sample": g,
            "prompt": problems[p].problem,
            "response": said[p][g],
            "extracted": grade.extracted,
            "outcome": grade.outcome,
            "reward": grade.reward,
            "gold": problems[p].gold,
            "finish_reason": "stop" if rollouts.stopped[p, g] else "length",
            "prompt_tokens": len(problems[p].prompt_ids),
            "response_tokens": n,
        }
        if teacher is not None:
            u = (teacher.logprobs[i] - student.logprobs[i])[:n]
            row |= {"context_source": contexts[i].source, "context_tokens": len(contexts[i].ids), "u_mean": float(u.mean())}
        rows.append(row)
    return rows
