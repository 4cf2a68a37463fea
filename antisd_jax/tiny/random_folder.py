"""A small random Qwen3 folder for trying real text without a download.

`antisd random-model --text=FILE.jsonl --output=DIR [--vocab=1024] [--width=64] [--layers=2] [--thinking]`
trains a byte-level BPE tokenizer on the file's problems and solutions, adds a Qwen-style chat template (with --thinking:
one that writes an empty thought when thinking is off) and writes random weights. It knows nothing; it only has the shape.
"""

import argparse
import json
from pathlib import Path

from antisd_jax.model.decoder import ModelConfig, count, init
from antisd_jax.model.hf import config_json, save_folder
from antisd_jax.text.data import DataConfig, load
from antisd_jax.tiny import tokenizer as tok


def make(
    text: str, output: Path, vocab: int = 1024, width: int = 64, layers: int = 2, thinking: bool = False, seed: int = 0
) -> ModelConfig:
    """Write the folder; returns the model's numbers."""
    problems = load(DataConfig(text), "text")
    trained = tok.trained_tokenizer([p.problem + "\n" + (p.solution or p.answer) for p in problems], vocab)
    tok.save(trained, output, tok.THINKING if thinking else tok.PLAIN)
    c = ModelConfig(trained.get_vocab_size(), width, layers, 4, 2, width // 4, 3 * width, rope_base=1e6, norm_eps=1e-6, tied=True)
    settings = config_json(c, eos=trained.token_to_id(tok.END), bos=None, positions=40960)
    (output / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    save_folder(output, c, init(c, seed))
    return c


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="antisd random-model", description=__doc__.splitlines()[0])
    parser.add_argument("--text", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--vocab", type=int, default=1024)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--thinking", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args(argv)
    c = make(a.text, a.output, a.vocab, a.width, a.layers, a.thinking, a.seed)
    print(f"{a.output}: {count(c):,} random parameters, vocabulary {c.vocab}")
