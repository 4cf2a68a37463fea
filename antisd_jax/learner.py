"""The update: gradient of the clipped surrogate over micro-batches, clipped, through AdamW.

Shape letters: M micro-batches, B rows of one, T tokens, R response tokens.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from antisd_jax.arrays import response_mask
from antisd_jax.model.parameters import ModelConfig
from antisd_jax.model.sharding import replicated
from antisd_jax.objective.advantage import Term, token_advantage
from antisd_jax.objective.loss import clipped_surrogate, importance_weight
from antisd_jax.score import score_rows
from antisd_jax.types import Batch, Scores, TrainState


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, its constant learning rate, and the shape of an update."""

    lr: float = 1e-6
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    aggregation: str = "token_mean"  # of the loss: token_mean, sequence_mean, constant
    mask_truncated: bool = False  # leave rollouts that hit the length cap out of the loss
    importance_cap: float = 0.0  # of the truncated importance weight between sampler and trainer (2 is usual); 0: no such weight
    minibatches: int = 1  # optimizer steps a batch; beyond 1 the ratio is taken against a scoring pass before them
    micro_rows: int = 64  # rows of one forward and backward pass, over all devices
    remat: str = "none"  # what the backward pass finds of a layer: none (all of it), dots, attention, full (its input alone)


@struct.dataclass
class UpdateStats:
    """What an update tells: scalars, and what its forward pass saw of every response token."""

    loss: Any  # scalar
    grad_norm: Any  # scalar, before clipping
    bad: Any  # [number of parameters] True where a gradient or new weight is not finite; then nothing was changed
    clipped: Any  # [M B R] bool
    student: Scores  # arrays [M B R]
    load: Any = None  # [L E] tokens that each expert took, or None without experts


def make_optimizer(o: OptimConfig) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(o.max_grad_norm),
        optax.adamw(o.lr, b1=o.beta1, b2=o.beta2, weight_decay=o.weight_decay),
    )


def abstract_state(weights, o: OptimConfig, mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state for such weights (arrays or abstract): moments are placed as the weights."""
    optimizer = make_optimizer(o)
    placed = jax.tree.map(lambda w: w.sharding, weights)
    state = jax.eval_shape(optimizer.init, weights)
    shardings = optax.tree_map_params(optimizer, lambda _, s: s, state, placed, transform_non_params=lambda _: replicated(mesh))

    def as_abstract(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return TrainState(jax.tree.map(as_abstract, weights, placed), jax.tree.map(as_abstract, state, shardings))


def start(weights, o: OptimConfig, mesh) -> TrainState:
    """The state before the first update."""
    placed = jax.tree.map(lambda x: x.sharding, abstract_state(weights, o, mesh).optimizer)
    return TrainState(weights, jax.jit(make_optimizer(o).init, out_shardings=placed)(weights))


@partial(jax.jit, static_argnames=("c", "o", "term", "dtype"), donate_argnames=("state",))
def update(
    state: TrainState, batch: Batch, lam, temperature, *, c: ModelConfig, o: OptimConfig, term: Term, dtype=jnp.float32
) -> tuple[TrainState, UpdateStats]:
    """One optimizer step on a whole (mini)batch.

    The student's log-probs s come from this very forward pass, so u = t − s and the ratio cost no second one: without
    old_logprobs the ratio is exp(s − stop_gradient s) = 1. A gradient or weight that would not be finite changes nothing.
    """
    responses = batch.teacher_logprobs.shape[-1]

    def loss(weights, micro: Batch):
        scores, load = score_rows(c, weights, micro.rows, responses, temperature, remat=o.remat, dtype=dtype)
        fixed = jax.lax.stop_gradient(scores.logprobs)
        old = fixed if micro.old_logprobs is None else micro.old_logprobs
        advantage = token_advantage(micro.sequence_advantages, old, micro.teacher_logprobs, micro.term_weights, lam, term)
        weight = micro.loss_weights[:, None] * response_mask(micro.rows.response_lengths, responses)
        if micro.sampled_logprobs is not None:
            weight = weight * importance_weight(old, micro.sampled_logprobs, o.importance_cap)
        value, clipped = clipped_surrogate(scores.logprobs, old, advantage, weight, o.clip_low, o.clip_high)
        return value, (clipped, Scores(fixed, scores.entropies), load)

    def accumulate(carry, micro):
        total, gradient = carry
        (value, seen), g = jax.value_and_grad(loss, has_aux=True)(state.weights, micro)
        return (total + value, jax.tree.map(jnp.add, gradient, g)), seen

    zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, state.weights))
    (total, gradient), (clipped, student, load) = jax.lax.scan(accumulate, zero, batch)
    changes, optimizer = make_optimizer(o).update(gradient, state.optimizer, state.weights)
    new = TrainState(optax.apply_updates(state.weights, changes), optimizer)
    both = zip(jax.tree.leaves(gradient), jax.tree.leaves(new.weights))
    bad = jnp.stack([~(jnp.all(jnp.isfinite(g)) & jnp.all(jnp.isfinite(w))) for g, w in both])
    new = jax.tree.map(lambda a, b: jnp.where(jnp.any(bad), a, b), state, new)
    load = None if load is None else load.sum(axis=0)
    return new, UpdateStats(total, optax.global_norm(gradient), bad, clipped, student, load)
