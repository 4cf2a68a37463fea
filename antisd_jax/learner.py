"""The update: gradient of the clipped surrogate, summed over micro-batches, clipped, through AdamW.

Shape letters: B rows of a micro-batch, T tokens of its rows, R' response tokens at most, L layers, E experts.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from antisd_jax.arrays import response_mask
from antisd_jax.model.parameters import ModelConfig, declare
from antisd_jax.model.sharding import constrain, in_memory, replicated
from antisd_jax.objective.advantage import Term, token_advantage
from antisd_jax.objective.loss import clipped_surrogate, importance_weight
from antisd_jax.score import score_rows
from antisd_jax.types import Batch, Scores, TrainState


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, its constant learning rate, and the shape of an update."""

    lr: float = 1e-6  # AdamW's learning rate, constant [–; paper]
    beta1: float = 0.9  # AdamW's decay of the first moment [–; verl]
    beta2: float = 0.999  # AdamW's decay of the second moment [–; verl]
    weight_decay: float = 0.01  # AdamW's weight decay [–; verl]
    max_grad_norm: float = 1.0  # the gradient is scaled down to this norm [–; verl]
    clip_low: float = 0.2  # the ratio of probabilities counts from 1 − this [–; paper]
    clip_high: float = 0.2  # the ratio of probabilities counts up to 1 + this [–; paper]
    aggregation: str = "token_mean"  # how the loss weighs tokens: token_mean, sequence_mean, constant [–; verl]
    mask_truncated: bool = False  # leave rollouts that hit the length cap out of the loss [–; ours]
    importance_cap: float = 0.0  # caps a token's importance weight between sampler and trainer (2 is usual); 0: no such weight [–; ours]
    minibatches: int = 1  # optimizer updates of a step; beyond 1 the ratio is taken against a scoring pass before them [updates; paper]
    micro_tokens: int = 8192  # size of one forward and backward pass in each shard of rows: rows × length, at least one row [tokens; ours]
    moments: str = "float32"  # type of AdamW's first moment; bfloat16 halves it [–; ours]
    offload: bool = False  # AdamW's moments wait in the host's memory, and are on the device for its step alone [–; ours]
    remat: str = "none"  # what the backward pass finds of a layer: none (all of it), dots, attention, full (its input alone) [–; ours]


@struct.dataclass
class Seen:
    """What the forward and backward pass of a micro-batch tells."""

    loss: Any  # scalar, its part of the loss
    clipped: Any  # scalar, tokens whose gradient the clip took away
    student: Scores  # arrays [B R']
    load: Any = None  # [L E] tokens that each expert took, or None without experts


@struct.dataclass
class UpdateStats:
    """What an optimizer step tells, on the host."""

    loss: float
    grad_norm: float  # before clipping
    bad: Any  # [number of parameters] True where a gradient or new weight is not finite; then nothing was changed
    clipped: int
    load: Any = None  # [L E]


def make_optimizer(o: OptimConfig) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(o.max_grad_norm),
        optax.adamw(o.lr, b1=o.beta1, b2=o.beta2, weight_decay=o.weight_decay, mu_dtype=o.moments),
    )


def abstract_state(weights, o: OptimConfig, mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state between steps, for such weights (arrays or abstract): moments are placed as the weights."""
    optimizer = make_optimizer(o)
    placed = jax.tree.map(lambda w: w.sharding, weights)
    state = jax.eval_shape(optimizer.init, weights)

    def waiting(_, sharding):
        return in_memory(sharding, host=o.offload)

    shardings = optax.tree_map_params(optimizer, waiting, state, placed, transform_non_params=lambda _: replicated(mesh))

    def as_abstract(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return TrainState(jax.tree.map(as_abstract, weights, placed), jax.tree.map(as_abstract, state, shardings))


def start(weights, o: OptimConfig, mesh) -> TrainState:
    """The state before the first update."""
    placed = jax.tree.map(lambda x: x.sharding, abstract_state(weights, o, mesh).optimizer)
    return TrainState(weights, jax.jit(make_optimizer(o).init, out_shardings=placed)(weights))


def optimizer_step(state: TrainState, gradient, o: OptimConfig):
    """`apply`, to which moments come from the host and from which they go back, where they are kept there."""
    if not o.offload:
        return apply(state, gradient, o=o)

    def moved(tree, host: bool):
        return jax.tree.map(lambda x: jax.device_put(x, in_memory(x.sharding, host)) if x.ndim else x, tree)

    state, norm, bad = apply(state.replace(optimizer=moved(state.optimizer, False)), gradient, o=o)
    return state.replace(optimizer=moved(state.optimizer, True)), norm, bad


def no_gradient(weights):
    """Zeros, placed as the weights are. Not compiled: a program does not read what it only takes the shape of, and loses its placement."""
    return jax.tree.map(jnp.zeros_like, weights)


def add_gradient(gradient, loss, weights):
    """(gradient + ∂ value/∂ weights, more), where loss(weights) gives (value, more).

    Each layer's is added where it stands, as soon as the backward pass has it: a second gradient, as large as the weights, never exists.
    """
    value, pullback, more = jax.vjp(loss, weights, has_aux=True)
    sums = jax.tree.map(jax.new_ref, gradient)
    pullback.with_refs(sums)(jnp.ones_like(value))
    return jax.tree.map(jax.freeze, sums), more


@partial(jax.jit, static_argnames=("c", "o", "term", "dtype"), donate_argnames=("gradient",))
def accumulate(
    gradient, weights, batch: Batch, lam, limit, temperature, *, c: ModelConfig, o: OptimConfig, term: Term, dtype=jnp.float32
) -> tuple[Any, Seen]:
    """The gradient and that of one more micro-batch.

    The student's log-probs s come from this very forward pass, so u = t − s and the ratio cost no second one: without
    old_logprobs the ratio is exp(s − stop_gradient s) = 1. limit: the largest |u| that is no outlier (Term).
    """
    responses = batch.teacher_logprobs.shape[-1]

    def loss(weights):
        scores, load = score_rows(c, weights, batch.rows, responses, temperature, remat=o.remat, dtype=dtype)
        fixed = jax.lax.stop_gradient(scores.logprobs)
        old = fixed if batch.old_logprobs is None else batch.old_logprobs
        mask = response_mask(batch.rows.response_lengths, responses)
        credit = (batch.sequence_advantages, old, batch.teacher_logprobs, batch.term_weights)
        advantage = token_advantage(*credit, lam, term, mask, limit)
        weight = batch.loss_weights[:, None] * mask
        if batch.sampled_logprobs is not None:
            weight = weight * importance_weight(old, batch.sampled_logprobs, o.importance_cap)
        value, clipped = clipped_surrogate(scores.logprobs, old, advantage, weight, o.clip_low, o.clip_high)
        return value, Seen(value, clipped.sum(), Scores(fixed, scores.entropies), load)

    gradient, seen = add_gradient(gradient, loss, weights)
    return jax.tree.map(lambda p, a: constrain(a, *p.axes), declare(c), gradient), seen


@partial(jax.jit, static_argnames=("o",), donate_argnames=("state",))
def apply(state: TrainState, gradient, *, o: OptimConfig):
    """One optimizer step: (state, gradient norm before clipping, [parameters] not finite).

    A gradient or weight that would not be finite changes nothing.
    """

    def stepped(state, gradient) -> TrainState:
        changes, optimizer = make_optimizer(o).update(gradient, state.optimizer, state.weights)
        return TrainState(optax.apply_updates(state.weights, changes), optimizer)

    both = zip(jax.tree.leaves(gradient), jax.tree.leaves(stepped(state, gradient).weights))
    bad = jnp.stack([~(jnp.all(jnp.isfinite(g)) & jnp.all(jnp.isfinite(w))) for g, w in both])
    # Computed again once that is known: kept until then, the new state would stand beside the old one.
    state, gradient, bad = jax.lax.optimization_barrier((state, gradient, bad))
    new = jax.tree.map(lambda a, b: jnp.where(jnp.any(bad), a, b), state, stepped(state, gradient))
    return new, optax.global_norm(gradient), bad
