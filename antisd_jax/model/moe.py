"""A mixture of experts in place of a feed-forward block: token-choice routing over grouped matrix products, nothing dropped.

Shape letters: N tokens, D width, F feed-forward width of one expert, E experts, A experts a token.
"""

import jax
import jax.numpy as jnp

from antisd_jax.model.parameters import Experts
from antisd_jax.model.sharding import current_mesh, on_shards, platform

CHUNK = 8192  # tokens, gathered from all devices, whose copies for their experts exist at one time


def route(x, router, experts: Experts):
    """(probabilities […, A] float32, chosen experts […, A], the most likely first) of x […, D] under router [D E].

    softmax over all experts in float32, then the A largest; among equal ones the lower index wins.
    """
    exact = jax.lax.Precision.HIGHEST  # an accelerator's default rounds float32 products, and with them who is chosen
    logits = jnp.matmul(x.astype(jnp.float32), router.astype(jnp.float32), precision=exact)
    top, chosen = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), experts.per_token)
    return top / top.sum(axis=-1, keepdims=True) if experts.renormalise else top, chosen


def load(chosen, experts: Experts, real):
    """[E] how many tokens each expert took; chosen [B T A], real [B T] False at padding."""
    taken = (chosen[..., None] == jnp.arange(experts.count)).any(axis=-2)
    return (taken & real[..., None]).sum(axis=tuple(range(taken.ndim - 1)))


def mixture(x, probabilities, chosen, gate, up, down):
    """Σ over a token's experts of probability · down(silu(gate·x) · up·x). x [B T D] → [B T D].

    gate, up [E D F], down [E F D]. Under a mesh each device holds its share of the experts: tokens are gathered along the
    expert axis, every device does its own experts' work for all of them, and the sums are scattered back. With eight of
    128 experts a token, nearly every device needs nearly every token, so that an all-to-all would carry no less.
    """
    gate, up, down = (w.astype(x.dtype) for w in (gate, up, down))  # out here, so that what fsdp gathers is no wider
    token = ("rows", None, None)
    weights = (("experts", None, "feed_forward"), ("experts", None, "feed_forward"), ("experts", "feed_forward", None))
    return on_shards(_local, (token, token, token, *weights), token)(x, probabilities, chosen, gate, up, down)


def _local(x, probabilities, chosen, gate, up, down):
    """One device's part of `mixture`: its rows in, its rows out, in chunks of tokens that bound what is alive."""
    mesh = current_mesh()
    ways = mesh.shape["expert"] if mesh else 1
    shape = x.shape
    x, probabilities, chosen = (a.reshape(-1, a.shape[-1]) for a in (x, probabilities, chosen))
    chunks = -(-len(x) * ways // CHUNK)
    if chunks == 1:
        return _chunk(x, probabilities, chosen, gate, up, down, mesh is not None).reshape(shape)
    size = -(-len(x) // chunks)

    def split(a):
        return jnp.pad(a, ((0, chunks * size - len(a)), (0, 0))).reshape(chunks, size, -1)

    part = jax.checkpoint(lambda a: _chunk(*a, gate, up, down, mesh is not None))
    out = jax.lax.map(part, tuple(map(split, (x, probabilities, chosen))))
    return out.reshape(chunks * size, -1)[: len(x)].reshape(shape)


def _chunk(x, probabilities, chosen, gate, up, down, spread: bool):
    """x [N D], probabilities and chosen [N A] of this device → [N D]; spread: the experts are spread over a mesh."""
    each, first = chosen.shape[-1], 0
    if spread:
        x, probabilities, chosen = (jax.lax.all_gather(a, "expert", tiled=True) for a in (x, probabilities, chosen))
        first = jax.lax.axis_index("expert") * gate.shape[0]
    experts = gate.shape[0]
    local = chosen.reshape(-1) - first
    mine = (local >= 0) & (local < experts)
    local = jnp.where(mine, local, experts)
    order = jnp.argsort(local, stable=True)  # by expert; what other devices do comes last
    sizes = jnp.bincount(local, length=experts + 1)[:experts].astype(jnp.int32)
    # Rows beyond the groups' sum are not computed: their content is undefined, in the gradient as well, hence both masks.
    kept = mine[order][:, None]
    rows = jnp.where(kept, x[order // each], 0)
    hidden = jax.nn.silu(_products(rows, gate, sizes)) * _products(rows, up, sizes)
    out = jnp.where(kept, _products(hidden, down, sizes), 0)
    out = out[jnp.argsort(order)].reshape(-1, each, x.shape[-1]).astype(jnp.float32)
    out = (out * probabilities[..., None]).sum(axis=1).astype(x.dtype)
    if spread:
        out = jax.lax.psum_scatter(jax.lax.psum(out, "tensor"), "expert", tiled=True)
    return out


def _products(x, w, sizes):
    """x [N I], in order of its groups, by their matrices w [E I J]; sizes [E] → [N J]."""
    if platform() == "gpu":
        from antisd_jax.model.grouped import fits, grouped_dot

        if fits(x, w):
            return grouped_dot(x, w, sizes)
    return jax.lax.ragged_dot(x, w, sizes)
