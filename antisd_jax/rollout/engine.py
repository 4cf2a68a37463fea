"""The sampler: one prefill a problem, then a decode loop that stays on the device until every sample has ended.

Shape letters: P problems, G samples a problem, S prompt tokens, R response tokens, K key/value heads, C head channels.
"""

from functools import partial

import jax
import jax.numpy as jnp

from antisd_jax.arrays import check_shapes
from antisd_jax.model.decoder import decode_step, forward
from antisd_jax.model.parameters import ModelConfig, Weights
from antisd_jax.rollout.sampling import Sampling, sample_token
from antisd_jax.types import Rollouts


def sample_keys(key, problem_ids, sample_ids):
    """[P G] keys, one a sample: key(key, problem id, sample id)."""

    def one(problem, sample):
        return jax.random.fold_in(jax.random.fold_in(key, problem), sample)

    return jax.vmap(jax.vmap(one, (None, 0)))(problem_ids, sample_ids)


@partial(jax.jit, static_argnames=("c", "responses", "sampling", "stop", "dtype"))
def generate(
    weights: Weights,
    prompts,
    prompt_lengths,
    key,
    problem_ids,
    sample_ids,
    *,
    c: ModelConfig,
    responses: int,
    sampling: Sampling,
    stop: tuple[int, ...],
    dtype=jnp.float32,
) -> Rollouts:
    """Sample G responses of at most R = `responses` tokens for each of P prompts.

    prompts [P S] right-padded, prompt_lengths [P], problem_ids [P], sample_ids [P G] → Rollouts. The token at response
    index j of a sample is drawn with key(key, problem id, sample id, j): it depends on neither its place in the batch nor its
    neighbours. Ends when every sample has produced a stop token or R tokens.
    """
    size = check_shapes(
        prompts=("P S", prompts), prompt_lengths=("P", prompt_lengths), problem_ids=("P", problem_ids), sample_ids=("P G", sample_ids)
    )
    p, g = size["P"], size["G"]
    keys = sample_keys(key, problem_ids, sample_ids)
    hidden, kept = forward(c, weights, prompts, prompt_lengths, keep_kv=True, dtype=dtype)
    first = jnp.take_along_axis(hidden, (prompt_lengths - 1)[:, None, None], axis=1)
    empty = jnp.zeros((p, g, responses, c.kv_heads, c.head_dim), dtype)
    output = weights.output.astype(dtype)
    draw = jax.vmap(jax.vmap(lambda k, j, logits: sample_token(jax.random.fold_in(k, j), logits, sampling), (0, None, 0)), (0, None, 0))

    def unfinished(carry):
        step, done = carry[0], carry[1]
        return (step < responses) & ~jnp.all(done)

    def body(carry):
        step, done, hidden, cache, out = carry
        logits = jnp.einsum("pgd,vd->pgv", hidden, output, preferred_element_type=jnp.float32)
        token, logp = draw(keys, step, logits)
        token, logp = jnp.where(done, 0, token), jnp.where(done, 0.0, logp)
        ended = done | jnp.isin(token, jnp.array(stop, jnp.int32))
        out = Rollouts(
            tokens=out.tokens.at[:, :, step].set(token),
            lengths=out.lengths + ~done,
            logprobs=out.logprobs.at[:, :, step].set(logp),
            stopped=ended,
        )
        hidden, cache = decode_step(c, weights, token, step, prompt_lengths, kept.kv, cache, dtype)
        return step + 1, ended, hidden, cache, out

    nothing = Rollouts(
        tokens=jnp.zeros((p, g, responses), jnp.int32),
        lengths=jnp.zeros((p, g), jnp.int32),
        logprobs=jnp.zeros((p, g, responses), jnp.float32),
        stopped=jnp.zeros((p, g), bool),
    )
    start = jnp.broadcast_to(first, (p, g, c.width))
    cache = [(empty, empty) for _ in range(c.layers)]
    return jax.lax.while_loop(unfinished, body, (jnp.int32(0), nothing.stopped, start, cache, nothing))[-1]
