"""Our sampler beside peers', on the same weights and workloads, interleaved, medians of several rounds → benchmarks/RESULTS.md.

python benchmarks/rollout.py [--rounds=3] [--peers=DIR]    about 25 minutes on 2 cores; the peers get environments of their own under DIR
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from results_file import write_part  # noqa: E402

PEERS = {"tunix": ["google-tunix==0.1.7"], "transformers": ["torch==2.13.0", "transformers==5.23.0"]}
MODEL = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 4096,
    "hidden_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 768,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "max_position_embeddings": 4096,
    "torch_dtype": "float32",
}


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


def model_folder(folder: Path) -> None:
    """Random weights in Hugging Face format."""
    from antisd_jax.model.hf import save_weights
    from antisd_jax.model.parameters import init
    from antisd_jax.model.settings import load_config

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(MODEL))
    c = load_config(folder)
    save_weights(folder, c, init(c, 0))


class Engine:
    """A worker process in its own environment."""

    def __init__(self, name: str, python: str, folder: Path):
        command = [python, str(ROOT / "benchmarks" / "rollout_worker.py"), name, str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def run(self, order: dict) -> dict:
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"an engine ended: {' '.join(self.process.args)}")
        return json.loads(line)


def environment(name: str, folder: Path) -> str:
    """The Python of a peer's environment, made when it is not there."""
    python = folder / name / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PEERS[name]], check=True)
    return str(python)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default="/tmp/antisd-peers")
    parser.add_argument("--only", default="", help="workloads whose names begin so")
    parser.add_argument("--engines", default="antisd_jax,tunix,transformers")
    a = parser.parse_args()
    folder = Path(a.peers)
    model_folder(folder / "model")
    names = a.engines.split(",")
    engines = {n: Engine(n, sys.executable if n == "antisd_jax" else environment(n, folder), folder / "model") for n in names}
    lines = []
    for name, order in workloads().items():
        if not name.startswith(a.only):
            continue
        rates = {n: [] for n in engines}
        for round_ in range(a.rounds + 1):  # the first one compiles
            for n, engine in engines.items():
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
`python benchmarks/rollout.py`; JAX {version("jax")}, {", ".join(p for ps in PEERS.values() for p in ps)}, Python {platform.python_version()}.

The model: an 8-layer Qwen3, width 256, 8 query and 2 key/value heads of 32, feed-forward 768, vocabulary 4,096, tied. 32 prompts × 8 samples;
uniform: 64 prompt tokens, 256 new ones; long tail: lengths are log-normal with median 64, at most 1,024, the same for every engine, peers
in natural batches of as many rows as we have slots; group prefix: 512 prompt tokens, 64 new ones.

{markdown([head, *lines])}
"""
    write_part("Rollouts beside peers", text)


if __name__ == "__main__":
    main()
