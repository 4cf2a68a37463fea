"""One engine of the update comparison, in whatever environment it is started: `python update_worker.py ENGINE MODEL_DIR`.

Orders are JSON lines on standard input: {"tokens": [[ids]], "padded": bool}, rows of any length. Each is answered by {"seconds",
"tokens", "loss"}: one AdamW step on −Σ advantage · log-prob of every token but a row's first, over their number; a row's advantage is
+1 or −1 in turn. Float32 throughout. padded: all rows as long as the longest. ENGINE is antisd_jax, tunix or transformers.
"""

import json
import os
import sys
import time

LR = 1e-5
TOKENS = 2048  # of one of our micro-batches; as fast as larger ones on a CPU, and less is padding


def antisd_jax(folder):
    import jax
    import numpy as np

    from antisd_jax.batching import arrange, buckets
    from antisd_jax.learner import OptimConfig, accumulate, apply, no_gradient, start
    from antisd_jax.model import hf
    from antisd_jax.model.settings import load_config
    from antisd_jax.model.sharding import MeshConfig, make_mesh, place_rows
    from antisd_jax.objective.advantage import Term
    from antisd_jax.types import Batch, pack_rows

    c, mesh = load_config(folder), make_mesh(MeshConfig())
    o = OptimConfig(lr=LR, weight_decay=0.0, max_grad_norm=1e9)
    state = start(hf.load_weights(folder, c, mesh), o, mesh)

    def step(tokens, padded):
        nonlocal state
        lengths = np.array([len(t) for t in tokens])
        weight, sign = 1.0 / (lengths - 1).sum(), 1.0 - 2.0 * (np.arange(len(tokens)) % 2)
        sizes = [int(lengths.max())] if padded else buckets(int(lengths.max()))
        gradient, seen = no_gradient(state.weights), []
        for micro in arrange(lengths, sizes, TOKENS, 1):
            rows = pack_rows(((tokens[n][:1], tokens[n][1:]) for n in micro.rows if n >= 0), micro.rows.size, micro.length)
            zeros, full = np.zeros((micro.rows.size, micro.length - 1), np.float32), np.full(len(tokens), weight)
            batch = Batch(rows, micro.take(sign), zeros, micro.take(0 * full)[:, None], micro.take(full))
            gradient, more = accumulate(gradient, state.weights, place_rows(mesh, batch), 0.0, np.inf, 1.0, c=c, o=o, term=Term())
            seen.append((batch, more, np.arange(micro.length - 1) < batch.rows.response_lengths[:, None]))
        state, _, _ = jax.block_until_ready(apply(state, gradient, o=o))
        # The clipped surrogate's own value is −Σ advantage · ratio, and says nothing of the log-probs that peers' losses are made of.
        logprobs = [float((batch.sequence_advantages[:, None] * s.student.logprobs * inside).sum()) for batch, s, inside in seen]
        return -weight * sum(logprobs)

    return step


def padded_rows(tokens):
    """(ids [B T], mask of the predicted tokens [B T − 1], advantages [B]) as numpy arrays."""
    import numpy as np

    lengths = np.array([len(t) for t in tokens])
    ids = np.zeros((len(tokens), lengths.max()), np.int32)
    for row, t in zip(ids, tokens):
        row[: len(t)] = t
    return (
        ids,
        (np.arange(1, lengths.max()) < lengths[:, None]).astype(np.float32),
        (1.0 - 2.0 * (np.arange(len(tokens)) % 2)).astype(np.float32),
    )


def tunix(folder):
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx
    from tunix_model import load

    mesh, _, transformer = load(folder)
    with jax.set_mesh(mesh):
        optimizer = nnx.Optimizer(transformer, optax.adamw(LR, weight_decay=0.0), wrt=nnx.Param)

    @nnx.jit(donate_argnums=(0, 1))
    def update(transformer, optimizer, ids, mask, advantages):
        def loss(transformer):
            t = ids.shape[1]
            positions = jnp.broadcast_to(jnp.arange(t), ids.shape)
            causal = jnp.broadcast_to(jnp.tril(jnp.ones((t, t), bool)), (ids.shape[0], t, t))
            logits, _ = transformer(ids, positions, None, causal)
            logp = jax.nn.log_softmax(logits[:, :-1])
            logp = jnp.take_along_axis(logp, ids[:, 1:, None], axis=-1)[..., 0]
            return -(logp * mask * advantages[:, None]).sum() / mask.sum()

        value, gradient = nnx.value_and_grad(loss)(transformer)
        optimizer.update(transformer, gradient)
        return value

    def step(tokens, padded):
        with jax.set_mesh(mesh):
            value = update(transformer, optimizer, *map(jnp.asarray, padded_rows(tokens)))
            jax.block_until_ready(nnx.state(transformer))
        return float(value)

    return step


def transformers(folder):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(os.cpu_count())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), LR, betas=(0.9, 0.999), weight_decay=0.0)

    def step(tokens, padded):
        ids, mask, advantages = map(torch.tensor, padded_rows(tokens))
        logits = model(ids.long(), use_cache=False).logits[:, :-1]
        logp = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None].long())[..., 0]
        loss = -(logp * mask * advantages[:, None]).sum() / mask.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def main():
    engine, folder = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    step = {"antisd_jax": antisd_jax, "tunix": tunix, "transformers": transformers}[engine](folder)
    for line in sys.stdin:
        order = json.loads(line)
        start = time.perf_counter()
        loss = step(**order)
        seconds = time.perf_counter() - start
        answers.write(json.dumps({"seconds": seconds, "tokens": sum(map(len, order["tokens"])), "loss": loss}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
