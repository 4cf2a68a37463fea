"""The decoder of Qwen3, Qwen3-MoE and Olmo-3: two pure functions of one weight pytree. Families differ in their numbers alone.

Shape letters: B rows, T tokens, V vocabulary, D width, H query heads, K key/value heads, C head channels,
F feed-forward width, L layers, E experts, P problems, G samples a problem, S prompt tokens, R response tokens.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name, checkpoint_policies
from jax.sharding import NamedSharding

from antisd_jax.model.attention import attention
from antisd_jax.model.moe import load, mixture, route
from antisd_jax.model.parameters import LayerKind, Layers, ModelConfig, Weights, declare
from antisd_jax.model.rope import rotate
from antisd_jax.model.sharding import DECODE_RULES, RULES, constrain, current_mesh, spec

# What the backward pass finds of a layer instead of computing it again.
REMAT = {
    "none": None,  # everything
    "dots": checkpoint_policies.dots_with_no_batch_dims_saveable,  # the projections' outputs
    "attention": checkpoint_policies.save_only_these_names("attention"),  # attention's output
    "full": checkpoint_policies.nothing_saveable,  # the layer's input alone
}


@struct.dataclass
class Kept:
    """What a forward pass keeps besides the hidden states."""

    kv: Any = None  # rotated keys and values, two arrays [L B T K C], as the sampler's prompt cache
    load: Any = None  # [L E] tokens that each expert took, padding left out


def rms_norm(x, scale, eps: float):
    """x / √(mean x² + eps) · scale, over as many trailing axes as `scale` has; in float32, then x's dtype."""
    axes = tuple(range(-scale.ndim, 0))
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=axes, keepdims=True) + eps)
    return (wide * scale).astype(x.dtype)


def linear(x, w, inputs: int = 1):
    """x […, in…] · w [in…, out…] → […, out…] in x's dtype, `inputs` dimensions contracted.

    One plain matrix product over flattened dimensions: XLA's CPU backend is 1.7 times slower on the unflattened gradient.
    """
    rows, columns = x.shape[: x.ndim - inputs], w.shape[inputs:]
    size = math.prod(w.shape[:inputs])
    return (x.reshape(-1, size) @ w.astype(x.dtype).reshape(size, -1)).reshape(*rows, *columns)


def _block(c: ModelConfig, kind: LayerKind, w: Layers, x, positions, real, attend):
    """One layer. x […, D], positions […]; `attend(q, k, v)` sees rotated q, k and gives […, H, C] and what to keep.

    Returns (x, what attend kept, the experts' load or None); `real` […] is False at padding.
    """

    def around(sublayer, scale, x):
        if c.norm_after:
            out, kept = sublayer(x)
            return x + rms_norm(out, scale, c.norm_eps), kept
        out, kept = sublayer(rms_norm(x, scale, c.norm_eps))
        return x + out, kept

    def mix(h):
        q = rotate(rms_norm(linear(h, w.query), w.query_norm, c.norm_eps), positions, kind.rope)
        k = rotate(rms_norm(linear(h, w.key), w.key_norm, c.norm_eps), positions, kind.rope)
        mixed, kept = attend(q, k, linear(h, w.value))
        return linear(checkpoint_name(mixed, "attention"), w.out, inputs=2), kept

    def feed_forward(h):
        if c.experts is None:
            return linear(jax.nn.silu(linear(h, w.gate)) * linear(h, w.up), w.down), None
        probabilities, chosen = route(h, w.router, c.experts)
        return mixture(h, probabilities, chosen, w.gate, w.up, w.down), load(chosen, c.experts, real)

    x, kept = around(mix, w.attention_norm, x)
    x, taken = around(feed_forward, w.mlp_norm, x)
    return constrain(x, "rows", _along(x.shape[1]), None), kept, taken


def _along(t: int) -> str | None:
    """Between the layers the devices of the tensor axis keep a part of the sequence each: the backward pass finds all layers' inputs."""
    mesh = current_mesh()
    return "sequence" if mesh and t > 1 and t % mesh.shape["tensor"] == 0 else None


def forward(c: ModelConfig, weights: Weights, tokens, lengths=None, *, remat="none", keep_kv=False, dtype=jnp.float32):
    """Hidden states of right-padded rows: tokens [B T], lengths [B] → (states [B T D] after the last norm, Kept).

    Causal, positions from 0. remat: a key of REMAT. keep_kv: also keep every layer's keys and values.
    The scan is over repetitions of the layer pattern, so that each kind of layer is compiled for its own window.
    """
    b, t = tokens.shape
    lengths = jnp.full((b,), t, jnp.int32) if lengths is None else lengths
    positions = jnp.broadcast_to(jnp.arange(t), tokens.shape)
    real = (positions < lengths[:, None]) & (lengths[:, None] > 1)  # a row of one token only fills up a micro-batch

    def layer(x, stacked, i):
        """Layer i of the pattern. The slice is taken in here: outside, remat would save a copy of all weights."""

        def attend(q, k, v):
            return attention(q, k, v, lengths, c.kinds[i].window), (k, v) if keep_kv else None

        return _block(c, c.kinds[i], jax.tree.map(lambda a: a[i], stacked), x, positions, real, attend)

    if remat != "none":
        layer = jax.checkpoint(layer, policy=REMAT[remat], static_argnums=2)

    def pattern(x, stacked):
        kept = []
        for i in range(len(c.kinds)):
            x, kv, taken = layer(x, stacked, i)
            kept.append(Kept(kv, taken))
        return x, jax.tree.map(lambda *a: jnp.stack(a), *kept)

    x = constrain(weights.embedding.astype(dtype)[tokens], "rows", _along(t), None)
    repeated = jax.tree.map(lambda a: a.reshape(-1, len(c.kinds), *a.shape[1:]), weights.layers)
    x, kept = jax.lax.scan(pattern, x, repeated)
    kept = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), kept)
    return rms_norm(x, weights.norm, c.norm_eps), kept


@struct.dataclass
class DecodeWeights:
    """Weights as decoding reads them: a layer's arrays stand by themselves, since slices of a stack would be copied at every token."""

    embedding: Any  # [V D]
    unembedding: Any  # [V D] or None
    norm: Any  # [D]
    layers: list  # of Layers without their leading dimension

    @property
    def output(self):
        """[V D], the matrix that turns hidden states into logits."""
        return self.embedding if self.unembedding is None else self.unembedding


@partial(jax.jit, static_argnames=("c", "dtype"))
def unstacked(c: ModelConfig, weights: Weights, dtype) -> DecodeWeights:
    """Copies in the dtype of decoding (norm scales keep theirs), laid out for it: see DECODE_RULES. Experts stay where they are."""

    def placed(a, axes):
        return constrain(a.astype(dtype) if a.ndim > 1 else a, *axes, rules=_decode_rules(axes))

    declared = declare(c)
    layers = [jax.tree.map(lambda p, a, i=i: placed(a[i], p.axes[1:]), declared.layers, weights.layers) for i in range(c.layers)]
    table = declared.embedding.axes
    unembedding = None if c.tied else placed(weights.unembedding, table)
    return DecodeWeights(placed(weights.embedding, table), unembedding, placed(weights.norm, declared.norm.axes), layers)


def _decode_rules(axes):
    return RULES if "experts" in axes else DECODE_RULES


def abstract_decoding(c: ModelConfig, mesh, dtype) -> DecodeWeights:
    """Shapes, dtypes and shardings of what `unstacked` gives on a mesh, without any data."""
    declared = declare(c)

    def one(axes, shape):
        kind = jnp.dtype(dtype) if len(shape) > 1 else jnp.dtype(jnp.float32)
        return jax.ShapeDtypeStruct(shape, kind, sharding=NamedSharding(mesh, spec(axes, _decode_rules(axes))))

    layer = jax.tree.map(lambda p: one(p.axes[1:], p.shape[1:]), declared.layers)
    tables = [None if p is None else one(p.axes, p.shape) for p in (declared.embedding, declared.unembedding, declared.norm)]
    return DecodeWeights(*tables, [layer] * c.layers)


def decode_step(c: ModelConfig, weights: DecodeWeights, tokens, positions, attend, dtype=jnp.float32):
    """Append one token to every row: tokens, positions [S] → the hidden state [S D] that predicts the next.

    attend(i, q [S H C], k [S K C], v [S K C]) → [S H C] is the part of layer i's cache.
    """
    real = jnp.ones(tokens.shape, bool)

    def one_token(i, q, k, v):
        return attend(i, q[:, 0], k[:, 0], v[:, 0])[:, None], None

    x = weights.embedding[tokens].astype(dtype)[:, None]
    for i, w in enumerate(weights.layers):
        x, _, _ = _block(c, c.kinds[i % len(c.kinds)], w, x, positions[:, None], real[:, None], partial(one_token, i))
    return rms_norm(x[:, 0], weights.norm, c.norm_eps)
