"""`antisd convert`: a checkpoint of a run as a Hugging Face folder that transformers and the serving engines load.

`antisd convert RUN [--step=N] --to=DIR [--dtype=float32]` writes config.json, the tokenizer and safetensors. float32 holds
the trained weights to the bit; bfloat16 rounds them, to half the size. The host's memory has to hold the result.
"""

import argparse
import json
import os
import shutil
import tempfile
from contextlib import closing
from pathlib import Path

import jax
import jax.numpy as jnp

from antisd_jax.checkpoint import CheckpointConfig, Checkpoints
from antisd_jax.errors import UserError
from antisd_jax.log import say
from antisd_jax.model.hf import copy_settings, save_weights
from antisd_jax.model.parameters import abstract, count
from antisd_jax.model.settings import load_config, read_json
from antisd_jax.model.sharding import MeshConfig, make_mesh


def convert(run: str | Path, to: str | Path, step: int | None = None, dtype: str = "float32") -> Path:
    """Write the folder `to`, complete or not at all. Raises UserError for what is missing or in the way."""
    run, to = Path(run), Path(to)
    to = to.resolve()
    if not (run / "checkpoints").is_dir() or not (run / "model").is_dir():
        raise UserError(f"{run} is not a run's folder: it has no {'model' if (run / 'checkpoints').is_dir() else 'checkpoints'}")
    if not to.parent.is_dir():
        raise UserError(f"{to.parent} does not exist: choose another --to")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"{to} exists and is not empty: choose another --to")
    c = load_config(run / "model")
    with closing(Checkpoints(run / "checkpoints", CheckpointConfig(), read_only=True)) as checkpoints:
        step = checkpoints.choose(step)
        weights, _ = checkpoints.restore_weights(step, abstract(c, make_mesh(MeshConfig(), jax.devices("cpu")[:1]), jnp.dtype(dtype)))
    part = Path(tempfile.mkdtemp(prefix=f".{to.name}.", dir=to.parent))
    try:
        part.chmod(0o755)
        copy_settings(run / "model", part)
        settings = read_json(part / "config.json")
        settings["dtype" if "dtype" in settings else "torch_dtype"] = dtype
        (part / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
        save_weights(part, c, weights, jnp.dtype(dtype))
        if to.exists():
            to.rmdir()
        os.replace(part, to)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    say(f"{to}: step {step} of {run}, {count(c):,} parameters, {dtype}")
    return to


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="antisd convert", description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--step", type=int, help="default: the last one")
    parser.add_argument("--to", required=True, help="a new folder")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    a = parser.parse_args(argv)
    convert(a.run, a.to, a.step, a.dtype)
