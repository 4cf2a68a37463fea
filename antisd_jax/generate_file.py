"""`antisd generate`: the sampler of training, usable alone.

`antisd generate --model=DIR --input=FILE.jsonl --output=FILE.jsonl [--samples=1] [--response=512] [--sampling.temperature=1] …`
Rows hold a prompt: "prompt_ids", or "prompt" as text, which is encoded as it stands, or with --chat=true becomes a user turn of the
model's chat template. The same rows come out in order, once for each sample, with "sample", "response_ids", "response",
"logprobs" (nats, at the sampling temperature) and "finish_reason" (stop, length).
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from antisd_jax.arrays import named_key
from antisd_jax.errors import UserError
from antisd_jax.files import check_output, read_rows, write_atomically
from antisd_jax.log import say
from antisd_jax.model import hf
from antisd_jax.model.settings import load_config, stop_tokens
from antisd_jax.model.sharding import MeshConfig, make_mesh, use_mesh
from antisd_jax.rollout.engine import generate
from antisd_jax.rollout.sampling import Sampling
from antisd_jax.score import exact_products
from antisd_jax.steps import model_folder
from antisd_jax.text.prompt import PromptConfig, Prompts, ids_or_text, load_tokenizer
from antisd_jax.types import pack_rows


@dataclass(frozen=True)
class GenerateConfig:
    model: str = "tiny"
    revision: str = "main"
    input: str = ""
    output: str = ""
    samples: int = 1
    response: int = 512  # tokens at most
    slots: int = 256  # samples in flight
    seed: int = 0
    dtype: str = "float32"
    chat: bool = False
    prompt: PromptConfig = field(default_factory=PromptConfig)
    sampling: Sampling = field(default_factory=Sampling)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self):
        if not self.input or not self.output:
            raise UserError("antisd generate needs --input and --output")
        if min(self.samples, self.response, self.slots) < 1:
            raise UserError(f"samples, response and slots: got {self.samples}, {self.response} and {self.slots}, wanted at least 1")
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"dtype: got {self.dtype!r}, wanted one of float32, bfloat16")
        check_output(self.output)


def generate_file(config: GenerateConfig) -> None:
    """Read, sample, write. Raises UserError for what the user can mend, naming the row."""
    rows = [row for _, row in read_rows(Path(config.input))]
    folder = model_folder(config.model, config.revision)
    c, stop, mesh = load_config(folder), stop_tokens(folder), make_mesh(config.mesh)
    tokenizer = load_tokenizer(folder, chat=config.chat)
    render = Prompts(tokenizer, config.prompt).ids if config.chat else lambda text: tokenizer.encode(text, add_special_tokens=False)
    ids = [ids_or_text(row, "prompt", render, c.vocab, f"{config.input}, row {i}") for i, row in enumerate(rows, 1)]
    prompts = pack_rows(((i, ()) for i in ids), len(ids), max(map(len, ids), default=1))
    out = ""
    if ids:
        with use_mesh(mesh), exact_products(config.dtype):
            weights = hf.load_weights(folder, c, mesh, jnp.dtype(config.dtype))
            began = time.monotonic()
            rollouts, tally = generate(
                weights,
                prompts.tokens,
                prompts.prompt_lengths,
                named_key(config.seed, 0, "sample"),
                np.arange(len(ids), dtype=np.uint32),
                np.tile(np.arange(config.samples, dtype=np.uint32), (len(ids), 1)),
                c=c,
                responses=config.response,
                sampling=config.sampling,
                stop=stop,
                dtype=config.dtype,
                slots=min(config.slots, len(ids) * config.samples),
            )
        seconds = time.monotonic() - began
        out = "".join(json.dumps(row | said(rollouts, i, g, tokenizer)) + "\n" for i, row in enumerate(rows) for g in range(config.samples))
        numbers = tally.metrics()
        say(
            f"{tally.generated} tokens in {seconds:.1f} s, compilation included: {tally.generated / seconds:.0f} a second;"
            f" {100 * numbers['rollout/occupancy']:.0f} % of the decoded are wanted; cache {numbers['rollout/cache_gib']:.2f} GiB"
        )
    write_atomically(Path(config.output), out)
    say(f"{config.output}: {len(rows) * config.samples} responses to {len(rows)} prompts")


def said(rollouts, i: int, g: int, tokenizer) -> dict:
    n = int(rollouts.lengths[i, g])
    tokens = rollouts.tokens[i, g, :n].tolist()
    return {
        "sample": g,
        "response_ids": tokens,
        "response": tokenizer.decode(tokens, skip_special_tokens=True),
        "logprobs": rollouts.logprobs[i, g, :n].astype(np.float64).tolist(),
        "finish_reason": "stop" if rollouts.stopped[i, g] else "length",
    }
