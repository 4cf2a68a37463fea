"""What the comparisons with peers share: the model, the peers' environments, and a worker process in each."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

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

    def __init__(self, worker: str, name: str, python: str, folder: Path):
        command = [python, str(ROOT / "benchmarks" / worker), name, str(folder)]
        environment = os.environ | ({"PYTHONPATH": str(ROOT)} if name == "antisd_jax" else {})
        self.log = folder.parent / f"{name}.log"
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log.open("w"))
        self.process = subprocess.Popen(command, text=True, env=environment, **pipes)

    def run(self, order: dict) -> dict:
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"an engine ended: {' '.join(self.process.args)}; see {self.log}")
        return json.loads(line)


def environment(name: str, folder: Path) -> str:
    """The Python of a peer's environment, made when it is not there."""
    python = folder / name / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PEERS[name]], check=True)
    return str(python)


def engines(worker: str, names: list[str], folder: Path) -> dict[str, Engine]:
    """A worker of each, on the model in `folder`; ours in this environment."""
    model_folder(folder / "model")
    return {n: Engine(worker, n, sys.executable if n == "antisd_jax" else environment(n, folder), folder / "model") for n in names}


def versions() -> str:
    """What was compared."""
    import platform
    from importlib.metadata import version

    return f"JAX {version('jax')}, {', '.join(p for ps in PEERS.values() for p in ps)}, Python {platform.python_version()}"
