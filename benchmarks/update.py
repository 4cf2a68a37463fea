"""Our update beside peers' on the same weights and rows, the ragged batch beside the padded one, and AntiSD's step beside GRPO's.

python benchmarks/update.py [--rounds=5] [--peers=DIR]    about 10 minutes on 2 cores → benchmarks/RESULTS.md
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from peers import engines, model_folder, versions
from results_file import write_part
from update_worker import TOKENS


def ragged(rng, rows: int) -> list:
    """Log-uniform lengths of 32 … 1,024 tokens, as rollouts have them: many short ones, few long ones."""
    lengths = np.exp(rng.uniform(np.log(32), np.log(1024), rows)).astype(int)
    lengths[:2] = 32, 1024
    return [rng.integers(1, 4096, n).tolist() for n in lengths]


def rates(orders: dict[str, tuple], rounds: int) -> dict[str, list[float]]:
    """Tokens a second of each (worker, order), interleaved; the first round compiles. Different workers must have the same loss there."""
    out: dict[str, list[float]] = {name: [] for name in orders}
    losses = {}
    for n in range(rounds + 1):
        for name, (worker, order) in orders.items():
            found = worker.run(order)
            if n:
                out[name].append(found["tokens"] / found["seconds"])
            else:
                losses.setdefault(worker, found["loss"])  # one worker's second order meets updated weights
                print(f"{name}: loss {found['loss']:.7f}", flush=True)
    if max(losses.values()) - min(losses.values()) > 1e-4:
        raise SystemExit(f"the engines do not compute the same: losses {list(losses.values())}")
    return out


def cell(values: list[float], places: int = 0) -> str:
    return f"{statistics.median(values):,.{places}f} ({min(values):,.{places}f} … {max(values):,.{places}f})"


def beside_grpo(folder: Path, rounds: int) -> str:
    """Seconds of a step without its rollouts: 64 samples, prompts of 32 tokens, privileged ones of 96, responses of 32 … 992."""
    import jax

    from antisd_jax.config import Config, Method
    from antisd_jax.learner import OptimConfig, start
    from antisd_jax.model import hf
    from antisd_jax.model.settings import load_config
    from antisd_jax.model.sharding import MeshConfig, make_mesh
    from antisd_jax.objective.gate import Gate
    from antisd_jax.steps import Policy, learn, make_batches, teacher_scores
    from antisd_jax.text.prompt import Context
    from antisd_jax.text.rows import Problem
    from antisd_jax.types import Rollouts

    rng, mesh, c = np.random.default_rng(1), make_mesh(MeshConfig()), load_config(folder)
    policy = Policy(c, mesh, None, (0,), 32, 96, 992, TOKENS, "float32")
    problems = [Problem(i, "", "", None, "", "", tuple(rng.integers(1, 4096, 32).tolist())) for i in range(8)]
    contexts = [Context(tuple(rng.integers(1, 4096, 96).tolist()), "solution") for _ in range(64)]
    lengths = np.array([len(r) - 32 for r in ragged(rng, 64)]).reshape(8, 8).clip(32)
    tokens = rng.integers(1, 4096, (8, 8, 992)).astype(np.int32) * (np.arange(992) < lengths[..., None])
    rollouts = Rollouts(tokens, lengths, np.zeros((8, 8, 992), np.float32), np.ones((8, 8), bool))
    rewards, acts = rng.integers(0, 2, (8, 8)).astype(float), np.ones(64, bool)
    method = {"grpo": Method("grpo", 0.0, gate=Gate("none")), "antisd": Method()}
    optim = OptimConfig()
    state = start(hf.load_weights(folder, c, mesh), optim, mesh)
    seconds: dict[str, list[float]] = {"grpo": [], "antisd": [], "teacher": []}
    for n in range(rounds + 1):
        for name in method:
            config = replace(Config(), method=method[name], optim=optim)
            began = time.perf_counter()
            teacher = teacher_scores(policy, state.weights, problems, contexts, rollouts, 1.0)[0] if name == "antisd" else None
            passed = time.perf_counter() - began
            work = make_batches(policy, problems, rewards, rollouts, teacher, acts[:, None], None, config)
            state, _, _ = learn(policy, state, work, config.method.lam_max, config, 1)
            jax.block_until_ready(state)
            if n:
                seconds[name].append(time.perf_counter() - began)
                if name == "antisd":
                    seconds["teacher"].append(passed)
    ratio = statistics.median(seconds["antisd"]) / statistics.median(seconds["grpo"])
    return (
        f"A step without its rollouts ({lengths.sum():,} response tokens of 64 samples; prompts of 32 tokens, privileged ones of 96): GRPO"
        f" {cell(seconds['grpo'], 2)} s, AntiSD {cell(seconds['antisd'], 2)} s, of which the teacher's pass {cell(seconds['teacher'], 2)} s:"
        f" {ratio:.2f} ×. By products alone, a forward pass beside forward and backward, it would be"
        f" {1 + (lengths.sum() + 64 * 96) / (lengths.sum() + 64 * 32) / 3:.2f} ×."
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", default="/tmp/antisd-peers")
    parser.add_argument("--engines", default="antisd_jax,tunix,transformers")
    a = parser.parse_args()
    from antisd_jax.results import markdown

    rng, names = np.random.default_rng(0), a.engines.split(",")
    model_folder(Path(a.peers) / "model")
    grpo = beside_grpo(Path(a.peers) / "model", a.rounds)
    print(grpo, flush=True)
    workers = engines("update_worker.py", names, Path(a.peers))
    even = {"tokens": rng.integers(1, 4096, (32, 256)).tolist(), "padded": True}
    found = rates({n: (w, even) for n, w in workers.items()}, a.rounds)
    rows = ragged(rng, 64)
    ours = workers["antisd_jax"]
    uneven = rates({"in buckets": (ours, {"tokens": rows, "padded": False}), "padded": (ours, {"tokens": rows, "padded": True})}, a.rounds)
    medians = {k: statistics.median(v) for k, v in (found | uneven).items()}
    print(json.dumps({k: [round(x) for x in v] for k, v in (found | uneven).items()}), flush=True)
    table = [["32 × 256 tokens", "tokens a second", "ours over it"]]
    table += [[n, cell(found[n]), f"{medians[names[0]] / medians[n]:.2f}×"] for n in names]
    lengths = sum(map(len, rows))
    second = [["64 rows of 32 … 1,024 tokens", "useful tokens a second", "buckets over it"]]
    second += [[n, cell(uneven[n]), f"{medians['in buckets'] / medians[n]:.2f}×"] for n in uneven]
    text = f"""Forward, backward and AdamW in float32 on the model of the rollout comparison; median (least … most) of {a.rounds} interleaved rounds after one
that compiles; our micro-batches hold {TOKENS:,} tokens; 2 CPU cores. `python benchmarks/update.py`; {versions()}.

{markdown(table)}

{markdown(second)}

Lengths are log-uniform: {lengths:,} tokens of the {64 * 1024:,} that padding makes of them, {64 * 1024 / lengths:.2f} × as many.

{grpo}
"""
    write_part("Updates beside peers", text)


if __name__ == "__main__":
    main()
