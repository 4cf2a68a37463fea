"""`antisd score`: log-probs and entropies of given responses, by the scorer of training.

`antisd score --model=DIR --input=FILE.jsonl --output=FILE.jsonl [--dtype=float32] [--temperature=1.0]`
Rows hold "prompt_ids" and "response_ids", or "prompt" and "response" as text, which is encoded as it stands: no chat
template, no special tokens added. The same rows come out, in order, with "logprobs" and "entropies" (nats) of the response
tokens. --tokens bounds a batch (rows × length), --mesh.fsdp=4 and the like spread the model over devices.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from antisd_jax.batching import arrange, rungs
from antisd_jax.errors import UserError
from antisd_jax.files import check_output, read_rows, write_atomically
from antisd_jax.log import say
from antisd_jax.model import hf
from antisd_jax.model.settings import load_config
from antisd_jax.model.sharding import MeshConfig, make_mesh, place_rows, rows_per_step, use_mesh
from antisd_jax.score import exact_products, score
from antisd_jax.steps import model_folder
from antisd_jax.text.prompt import ids_or_text, load_tokenizer
from antisd_jax.types import pack_rows

LEAST = 64  # tokens of the shortest rows


@dataclass(frozen=True)
class ScoreConfig:
    """dtype: of weights and activations; log-probs are float32 in any case. tokens: of one batch, padding included."""

    model: str = ""
    input: str = ""
    output: str = ""
    revision: str = "main"
    dtype: str = "float32"
    temperature: float = 1.0
    tokens: int = 32768
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self):
        for name in ("model", "input", "output"):
            if not getattr(self, name):
                raise UserError(f"antisd score needs --{name}")
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"dtype: got {self.dtype!r}, wanted one of float32, bfloat16")
        if not 1e-3 <= self.temperature <= 1e3 or self.tokens < 1:
            raise UserError(f"temperature and tokens: got {self.temperature} and {self.tokens}, wanted 0.001 … 1000 and at least 1")
        check_output(self.output)


def score_file(config: ScoreConfig) -> None:
    """Read, score, write. Raises UserError for what the user can mend, naming the line."""
    folder = model_folder(config.model, config.revision)
    c = load_config(folder)
    rows = [row for _, row in read_rows(Path(config.input))]
    pairs = ids_of(rows, folder, c.vocab, config.input)
    mesh = make_mesh(config.mesh)
    with use_mesh(mesh), exact_products(config.dtype):
        weights = hf.load_weights(folder, c, mesh, jnp.dtype(config.dtype))
        scored = score_pairs(weights, c, mesh, pairs, config)
    lines = [json.dumps(row | dict(zip(("logprobs", "entropies"), s))) for row, s in zip(rows, scored)]
    write_atomically(Path(config.output), "\n".join(lines) + "\n" if lines else "")
    say(f"{config.output}: {len(rows)} rows, {sum(len(r) for _, r in pairs)} response tokens")


def ids_of(rows: list[dict], folder: Path, vocab: int, where: str) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, response ids) of every row."""
    as_text = any(r.get(f"{part}_ids") is None and isinstance(r.get(part), str) for r in rows for part in ("prompt", "response"))
    tokenizer = load_tokenizer(folder, chat=False) if as_text else None

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    places = ((row, f"{where}, row {i}") for i, row in enumerate(rows, 1))
    return [(ids_or_text(r, "prompt", encode, vocab, at), ids_or_text(r, "response", encode, vocab, at)) for r, at in places]


def score_pairs(weights, c, mesh, pairs, config: ScoreConfig) -> list[tuple[list[float], list[float]]]:
    """(log-probs, entropies) of each response. Batches are made of rows of like length."""
    lengths = [len(p) + len(r) for p, r in pairs]
    ways, done, out = rows_per_step(mesh), 0, [None] * len(pairs)
    for micro in arrange(lengths, rungs(LEAST, max(lengths, default=LEAST)), config.tokens // ways, ways):
        chosen = micro.rows[micro.rows >= 0]
        responses = rungs(LEAST, max(len(pairs[i][1]) for i in chosen))[-1]
        rows = place_rows(mesh, pack_rows([pairs[i] for i in chosen], micro.rows.size, micro.length))
        found = jax.device_get(score(weights, rows, config.temperature, c=c, responses=responses, dtype=config.dtype))
        if not all(np.isfinite(x).all() for x in jax.tree.leaves(found)):
            raise UserError(f"{config.input}, row {chosen[0] + 1} or one of the {len(chosen)} scored with it: log-probs are not finite")
        for i, logp, entropy in zip(chosen, found.logprobs, found.entropies):
            n = len(pairs[i][1])
            out[i] = logp[:n].astype(np.float64).tolist(), entropy[:n].astype(np.float64).tolist()
        done += len(chosen)
        say(f"scored {done} of {len(pairs)} rows, the last {len(chosen)} in {micro.length} tokens")
    return out
