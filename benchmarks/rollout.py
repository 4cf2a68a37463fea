"""Our sampler beside peers', on the same weights and workloads, interleaved, medians of several rounds → benchmarks/RESULTS.md.

python benchmarks/rollout.py [--rounds=3] [--peers=DIR]    about 25 minutes on 2 cores; the peers get environments of their own under DIR
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from peers import engines, versions
from results_file import write_part


def workloads() -> dict[str, dict]:
    """Orders of rollout_worker.py by name."""
    rng = np.random.default_rng(0)

    def prompts(n: int, tokens: int) -> list:
        return rng.integers(1, 4096, (n, tokens)).tolist()

    tail = np.clip(np.exp(rng.normal(np.log(64), 1.0, (32, 8))), 4, 1024).astype(int)
    return {
        "uniform": {"prompts": prompts(32, 64), "samples": 8, "lengths": np.full((32, 8), 256).tolist(), "slots": 256},
        "uniform, 32 slots": {"prompts": prompts(4, 64), "samples": 8, "lengths": np.full((4, 8), 256).tolist(), "slots": 32},
        "long tail, 64 slots": {"prompts": prompts(32, 64), "samples": 8, "lengths": tail.tolist(), "slots": 64},
        "group prefix": {"prompts": prompts(32, 512), "samples": 8, "lengths": np.full((32, 8), 64).tolist(), "slots": 256},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default="/tmp/antisd-peers")
    parser.add_argument("--only", default="", help="workloads whose names begin so")
    parser.add_argument("--engines", default="antisd_jax,tunix,transformers")
    a = parser.parse_args()
    names = a.engines.split(",")
    workers = engines("rollout_worker.py", names, Path(a.peers))
    lines = []
    for name, order in workloads().items():
        if not name.startswith(a.only):
            continue
        rates = {n: [] for n in workers}
        for round_ in range(a.rounds + 1):  # the first one compiles
            for n, engine in workers.items():
                found = engine.run(order)
                if round_:
                    rates[n].append(found["tokens"] / found["seconds"])
        medians = {n: statistics.median(r) for n, r in rates.items()}
        print(json.dumps({"workload": name} | {n: [round(x) for x in r] for n, r in rates.items()}), flush=True)
        ours = medians[names[0]]
        cells = [f"{medians[n]:,.0f} ({min(rates[n]):,.0f} … {max(rates[n]):,.0f})" for n in names]
        lines.append([name, *cells, *[f"{ours / medians[n]:.2f}×" for n in names[1:]]])
    if not a.only and len(names) == 3:
        write(lines, names, a.rounds)


def write(lines: list[list[str]], names: list[str], rounds: int) -> None:
    from antisd_jax.results import markdown

    head = ["workload", *names, *[f"over {n}" for n in names[1:]]]
    text = f"""Useful tokens a second, median (least … most) of {rounds} interleaved rounds after one that compiles; 2 CPU cores, float32.
`python benchmarks/rollout.py`; {versions()}.

The model: an 8-layer Qwen3, width 256, 8 query and 2 key/value heads of 32, feed-forward 768, vocabulary 4,096, tied. 32 prompts × 8 samples;
uniform: 64 prompt tokens, 256 new ones; long tail: lengths are log-normal with median 64, at most 1,024, the same for every engine, peers
in natural batches of as many rows as we have slots; group prefix: 512 prompt tokens, 64 new ones.

{markdown([head, *lines])}
"""
    write_part("Rollouts beside peers", text)


if __name__ == "__main__":
    main()
