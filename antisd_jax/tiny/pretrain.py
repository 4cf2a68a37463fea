"""Makes the embedded model: `antisd pretrain-tiny --output=DIR [--seed=0] [--steps=1400] [--give-up=0.4]`.

Writes the problems (train.jsonl, eval.jsonl) and the folder model/ under DIR. The mixture: plain prompts answered by
noisy searches that may give up; the same with feedback alone; and privileged prompts (problem, solution, feedback)
answered almost at once. Only training puzzles are seen. Every batch holds the same numbers of both kinds of rows and one
global token mean, so that the mixture is what it says.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from antisd_jax.arrays import response_mask
from antisd_jax.errors import UserError
from antisd_jax.learner import add_gradient
from antisd_jax.model.hf import save_weights
from antisd_jax.model.parameters import LayerKind, ModelConfig, count, init
from antisd_jax.model.rope import Rope
from antisd_jax.model.settings import render
from antisd_jax.score import score_rows
from antisd_jax.text.prompt import Prompts, load_tokenizer
from antisd_jax.tiny import tokenizer as tok
from antisd_jax.tiny.countdown import direct, informed, puzzles, search
from antisd_jax.types import Rows, pack_rows

WIDTH, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD = 64, 3, 4, 2, 16, 192
PROMPT, CONTEXT, RESPONSE = 24, 112, 96  # tokens at most
PLAIN_ROWS, PRIVILEGED_ROWS = 64, 40
TRIALS = 7  # the most that fit into RESPONSE
GIVE_UP = 0.4  # after each failure
STRAY = 0.35  # an informed reader tries something else first
UNMOVED = 0.2  # of the informed readers search as if they had been shown nothing: it bounds how sure the teacher can be
RATE = 2e-3


def plain_row(prompts, puzzle, rng, give_up):
    text, _ = search(puzzle, rng, give_up, TRIALS)
    if rng.random() < 0.8:
        return prompts.student(puzzle.statement), text
    return prompts.teacher(puzzle.statement, None, feedback(rng)), text


def privileged_row(prompts, puzzle, rng, give_up):
    """The solution shown is a search that succeeded, as a sibling's would be, or a direct one, as the data set's is."""
    for _ in range(8):
        shown, right = search(puzzle, rng, give_up, TRIALS)
        if right:
            break
    hit = next((t for t in puzzle.hits if right and t.boxed() in shown), puzzle.hits[rng.integers(len(puzzle.hits))])
    if not right or rng.random() < 0.3:
        shown = direct(hit)
    unmoved = rng.random() < UNMOVED
    response = search(puzzle, rng, give_up, TRIALS)[0] if unmoved else informed(puzzle, hit, rng, STRAY)
    return prompts.teacher(puzzle.statement, shown, feedback(rng)), response


def feedback(rng) -> str:
    return f"Your answer is {'correct' if rng.random() < 0.3 else 'incorrect'}."


def pack(pairs, prompts, prompt_budget: int, end: int) -> Rows:
    """(prompt ids, response text) pairs → Rows with arrays [B T], T = prompt_budget + RESPONSE."""
    pairs = [(prompt, prompts.tokenizer.encode(text, add_special_tokens=False) + [end]) for prompt, text in pairs]
    for prompt, response in pairs:
        assert len(prompt) <= prompt_budget and len(response) <= RESPONSE, (len(prompt), len(response))
    return pack_rows(pairs, len(pairs), prompt_budget + RESPONSE)


@partial(jax.jit, static_argnames=("c", "optimizer"), donate_argnames=("weights", "state"))
def train_step(weights, state, plain: Rows, privileged: Rows, c: ModelConfig, optimizer):
    def loss(weights):
        total, tokens = 0.0, 0
        for rows in (plain, privileged):
            mask = response_mask(rows.response_lengths, RESPONSE)
            total -= jnp.sum(score_rows(c, weights, rows, RESPONSE, 1.0)[0].logprobs * mask)
            tokens += mask.sum()
        return total / tokens, total / tokens

    gradient, value = add_gradient(jax.tree.map(jnp.zeros_like, weights), loss, weights)
    updates, state = optimizer.update(gradient, state, weights)
    return optax.apply_updates(weights, updates), state, value


def write_problems(folder: Path, all_puzzles) -> None:
    for split, held_out in (("train", False), ("eval", True)):
        chosen = [p for p in all_puzzles if p.held_out == held_out]
        lines = [json.dumps(p.row(split, i), ensure_ascii=False) for i, p in enumerate(chosen)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="antisd pretrain-tiny", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--give-up", type=float, default=GIVE_UP, help="chance that a plain search ends after a failed try, 0 to 1")
    args = parser.parse_args(argv)
    if not 0 <= args.give_up <= 1:
        raise UserError(f"--give-up: got {args.give_up}, wanted a chance between 0 and 1")
    folder = args.output / "model"
    tokenizer = tok.countdown_tokenizer()
    tok.save(tokenizer, folder)
    c = ModelConfig(tokenizer.get_vocab_size(), WIDTH, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD, (LayerKind(Rope(1e4)),), tied=True)
    end = tokenizer.token_to_id(tok.END)
    settings = render(c, eos=end, bos=None, positions=512)
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    all_puzzles = puzzles(args.seed)
    write_problems(args.output, all_puzzles)
    seen = [p for p in all_puzzles if not p.held_out]
    print(f"{count(c):,} parameters, vocabulary {c.vocab}, {len(seen)} puzzles to train on", flush=True)

    prompts = Prompts(load_tokenizer(folder), tok.WORDING)
    schedule = optax.warmup_cosine_decay_schedule(0.0, RATE, min(100, args.steps // 4), args.steps, RATE / 50)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01))
    weights = init(c, args.seed)
    state = optimizer.init(weights)
    rng = np.random.default_rng([args.seed, 1])
    start = time.monotonic()
    for step in range(1, args.steps + 1):
        drawn = [seen[i] for i in rng.integers(len(seen), size=PLAIN_ROWS + PRIVILEGED_ROWS)]
        plain = pack([plain_row(prompts, p, rng, args.give_up) for p in drawn[:PLAIN_ROWS]], prompts, PROMPT, end)
        privileged = pack([privileged_row(prompts, p, rng, args.give_up) for p in drawn[PLAIN_ROWS:]], prompts, CONTEXT, end)
        weights, state, loss = train_step(weights, state, plain, privileged, c, optimizer)
        if step % 50 == 0 or step in (1, args.steps):
            print(f"step {step}/{args.steps}  loss {float(loss):.4f}  {time.monotonic() - start:.0f} s", flush=True)
    save_weights(folder, c, weights)
