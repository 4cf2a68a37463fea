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
from jax.ad_checkpoint import checkpoint_policies
from jax.sharding import NamedSharding

from antisd_jax.model.attention import attention
from antisd_jax.model.moe import load, mixture, route
from antisd_jax.model.parameters import LayerKind, Layers, ModelConfig, Param, Weights, declare
from antisd_jax.model.rope import rotate
from antisd_jax.model.sharding import RULES, WHOLE_RULES, constrain, current_mesh, spec


def _is_cudnn(primitive, *_, **__) -> bool:
    """Of cuDNN's attention the statistics are wanted besides the output, and have no name by which to keep them."""
    return primitive.name == "dot_product_attention_fwd_wrapper"


# What the backward pass finds of a layer instead of computing it again.
_either = checkpoint_policies.save_from_both_policies
REMAT = {
    "none": None,  # everything
    "dots": _either(checkpoint_policies.dots_with_no_batch_dims_saveable, _is_cudnn),  # the projections' outputs
    "attention": _either(checkpoint_policies.save_only_these_names("attention"), _is_cudnn),  # attention's output
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

    def along(x, *axes):
        """Said of every product, or else the compiler may move the activations of all devices to a weight's parts."""
        return constrain(x, "rows", None, *axes)

    def around(sublayer, scale, x):
        out, kept = sublayer(along(x if c.norm_after else rms_norm(x, scale, c.norm_eps), None))
        out = constrain(out, "rows", _along(x.shape[1]), None)
        return x + (rms_norm(out, scale, c.norm_eps) if c.norm_after else out), kept

    def mix(h):
        q, k, v = (along(linear(h, p), axis, None) for p, axis in ((w.query, "heads"), (w.key, "kv_heads"), (w.value, "kv_heads")))
        q = rotate(rms_norm(q, w.query_norm, c.norm_eps), positions, kind.rope)
        k = rotate(rms_norm(k, w.key_norm, c.norm_eps), positions, kind.rope)
        mixed, kept = attend(q, k, v)
        return linear(along(mixed, "heads", None), w.out, inputs=2), kept

    def feed_forward(h):
        if c.experts is None:
            hidden = jax.nn.silu(along(linear(h, w.gate), "feed_forward")) * along(linear(h, w.up), "feed_forward")
            return linear(hidden, w.down), None
        probabilities, chosen = route(h, w.router, c.experts)
        return mixture(h, probabilities, chosen, w.gate, w.up, w.down), load(chosen, c.experts, real)

    x, kept = around(mix, w.attention_norm, x)
    x, taken = around(feed_forward, w.mlp_norm, x)
    return x, kept, taken


def _along(t: int) -> str | None:
    """Between the layers the devices of the tensor axis keep a part of the sequence each: the backward pass finds all layers' inputs."""
    mesh = current_mesh()
    return "sequence" if mesh and t > 1 and t % mesh.shape["tensor"] == 0 else None


def forward(c: ModelConfig, weights: Weights, tokens, lengths=None, *, remat="none", keep_kv=False, dtype=jnp.float32):
    """Hidden states of right-padded rows: tokens [B T], lengths [B] → (states [B T D] after the last norm, Kept).

    Causal, positions from 0. remat: a key of REMAT. keep_kv: also keep every layer's keys and values.
    The scan is over repetitions of the layer pattern, so that each kind of layer is compiled for its own window. It takes its layers out
    of the stack by number, so that their gradients can be added in place: differentiate it by learner.add_gradient. A plain jax.grad
    gives the same numbers and adds the whole stack at every layer.
    """
    b, t = tokens.shape
    lengths = jnp.full((b,), t, jnp.int32) if lengths is None else lengths
    positions = jnp.broadcast_to(jnp.arange(t), tokens.shape)
    real = (positions < lengths[:, None]) & (lengths[:, None] > 1)  # a row of one token only fills up a micro-batch
    declared = declare(c).layers

    def layer(x, layers, n, i):
        """Layer i of the pattern's repetition n. It is taken in here: outside, remat would save a copy of all weights."""

        def attend(q, k, v):
            return attention(q, k, v, lengths, c.kinds[i].window), (k, v) if keep_kv else None

        taken = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, n * len(c.kinds) + i, keepdims=False), layers)
        whole = jax.tree.map(lambda p, a: _gathered(p, a, dtype), declared, taken)
        return _block(c, c.kinds[i], whole, x, positions, real, attend)

    if remat != "none":
        layer = jax.checkpoint(layer, policy=REMAT[remat], static_argnums=3)

    def pattern(x, n):
        kept = []
        for i in range(len(c.kinds)):
            x, kv, taken = layer(x, weights.layers, n, i)
            kept.append(Kept(kv, taken))
        return x, jax.tree.map(lambda *a: jnp.stack(a), *kept)

    x = constrain(weights.embedding.astype(dtype)[tokens], "rows", _along(t), None)
    x, kept = jax.lax.scan(pattern, x, jnp.arange(c.layers // len(c.kinds)))
    kept = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), kept)
    return rms_norm(x, weights.norm, c.norm_eps), kept


def _in_products(p: Param, dtype):
    """(dtype, axes of one layer, rules of placement) of a weight when it is multiplied: norms and routers stay float32, experts where
    they are; the rest is in the dtype of activations, and whole on each device but for the tensor axis."""
    kind = jnp.float32 if p.std is None or "routes" in p.axes else dtype
    axes = p.axes[1:] if p.axes[0] == "layers" else p.axes
    return jnp.dtype(kind), axes, RULES if "experts" in axes else WHOLE_RULES


def _gathered(p: Param, a, dtype):
    kind, axes, rules = _in_products(p, dtype)
    return constrain(a.astype(kind), *axes, rules=rules)


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
    """Copies in the dtype of decoding, laid out for it."""
    declared = declare(c)

    def layer(i):
        return jax.tree.map(lambda p, a: _gathered(p, a[i], dtype), declared.layers, weights.layers)

    def table(p, a):
        return None if p is None else _gathered(p, a, dtype)

    tables = table(declared.embedding, weights.embedding), table(declared.unembedding, weights.unembedding)
    return DecodeWeights(*tables, table(declared.norm, weights.norm), [layer(i) for i in range(c.layers)])


def abstract_decoding(c: ModelConfig, mesh, dtype) -> DecodeWeights:
    """Shapes, dtypes and shardings of what `unstacked` gives on a mesh, without any data."""

    def one(p: Param):
        kind, axes, rules = _in_products(p, dtype)
        return jax.ShapeDtypeStruct(p.shape[-len(axes) :], kind, sharding=NamedSharding(mesh, spec(axes, rules)))

    described = jax.tree.map(one, declare(c))
    return DecodeWeights(described.embedding, described.unembedding, described.norm, [described.layers] * c.layers)


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
