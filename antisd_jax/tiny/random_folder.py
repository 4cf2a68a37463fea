"""A small random folder of any of the families, for trying real text without a download.

`antisd random-model --text=FILE.jsonl --output=DIR [--family=qwen3_moe] [--vocab=1024] [--width=64] [--layers=4] [--template=hybrid]`
trains a byte-level BPE tokenizer on the file's problems and solutions, adds a Qwen-style chat template (hybrid: it writes an
empty thought when thinking is off; think: it opens a thought) and writes random weights. It knows nothing; it only has the
shape.
"""

import argparse
import json
from pathlib import Path

from antisd_jax.errors import UserError
from antisd_jax.model.hf import save_weights
from antisd_jax.model.parameters import Experts, LayerKind, ModelConfig, count, init
from antisd_jax.model.rope import Rope, Yarn
from antisd_jax.model.settings import ARCHITECTURES, render
from antisd_jax.text.data import DataConfig, load
from antisd_jax.tiny import tokenizer as tok

WINDOW, ORIGINAL = 64, 256  # of the Olmo-3 relative: small enough that a short run passes both


def relative(family: str, vocab: int, width: int = 64, layers: int = 4) -> ModelConfig:
    """A small relative of a family: its RoPE, norms, head layout and router, at little width."""
    if width < 8 or width % 8 or layers < 1:
        raise UserError(f"width and layers: got {width} and {layers}, wanted a multiple of 8 and at least 1")
    shape = dict(vocab=vocab, width=width, layers=layers, heads=4, head_dim=width // 4)
    plain = (LayerKind(Rope(1e6)),)
    if family == "qwen3":
        return ModelConfig(**shape, kv_heads=2, feed_forward=3 * width, kinds=plain, tied=True)
    if family == "qwen3_moe":
        return ModelConfig(**shape, kv_heads=2, feed_forward=width, kinds=plain, experts=Experts(8, 2, True))
    sliding = LayerKind(Rope(5e5), WINDOW)
    full = LayerKind(Rope(5e5, Yarn(8.0, ORIGINAL, 1.2079441541679836)))
    kinds = tuple(full if i % 4 == 3 else sliding for i in range(layers))
    kinds = kinds[:4] if layers % 4 == 0 else kinds
    return ModelConfig(**shape, kv_heads=4, feed_forward=3 * width, kinds=kinds, norm_after=True, norm_whole=True)


def make(
    text: str, output: Path, vocab: int = 1024, width: int = 64, layers: int = 4, family="qwen3", template="plain", seed: int = 0
) -> ModelConfig:
    """Write the folder; returns the model's numbers."""
    problems = load(DataConfig(text), "text")
    trained = tok.trained_tokenizer([p.problem + "\n" + (p.solution or p.answer) for p in problems], vocab)
    tok.save(trained, output, template)
    c = relative(family, trained.get_vocab_size(), width, layers)
    settings = render(c, eos=trained.token_to_id(tok.END), bos=None, positions=40960 if family != "olmo3" else 8 * ORIGINAL)
    (output / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    save_weights(output, c, init(c, seed))
    return c


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="antisd random-model", description=__doc__.splitlines()[0])
    parser.add_argument("--text", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--family", choices=list(ARCHITECTURES), default="qwen3")
    parser.add_argument("--vocab", type=int, default=1024)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--template", choices=list(tok.TEMPLATES), default="plain")
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args(argv)
    c = make(a.text, a.output, a.vocab, a.width, a.layers, a.family, a.template, a.seed)
    print(f"{a.output}: {count(c):,} random parameters, vocabulary {c.vocab}")
