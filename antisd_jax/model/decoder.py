"""A Qwen3 decoder as one weight pytree and three pure functions of it.

Every parameter is declared once, in `declare`; abstract shapes, initial values, shardings, Hugging Face names and the
checkpoint's structure are readings of that declaration.
Shape letters: B rows, T tokens, V vocabulary, D width, H query heads, K key/value heads, C head channels,
F feed-forward width, L layers, P problems, G samples a problem, S prompt tokens, R response tokens.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from antisd_jax.arrays import named_key
from antisd_jax.model.attention import causal_attention, decode_attention
from antisd_jax.model.rope import rotate


@dataclass(frozen=True)
class ModelConfig:
    """The numbers of one architecture, as read from its config.json."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    rope_base: float
    norm_eps: float
    tied: bool


@dataclass(frozen=True)
class Param:
    """One declared parameter.

    axes are logical names, one a dimension. hf is the Hugging Face tensor name, with {layer} where the leading
    "layers" dimension is one tensor a layer. inputs counts the dimensions (after "layers") contracted with the
    activation: Hugging Face stores such a matrix as [out, in], we as [in…, out…]; 0 means stored as it is.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    hf: str
    inputs: int = 0
    std: float | None = None  # None: ones


@struct.dataclass
class Layers:
    """All layers' parameters, stacked on a leading L."""

    attention_norm: Any  # [L D]
    query: Any  # [L D H C]
    key: Any  # [L D K C]
    value: Any  # [L D K C]
    query_norm: Any  # [L C]
    key_norm: Any  # [L C]
    out: Any  # [L H C D]
    mlp_norm: Any  # [L D]
    gate: Any  # [L D F]
    up: Any  # [L D F]
    down: Any  # [L F D]


@struct.dataclass
class Weights:
    """A whole model; `unembedding` is None when it is tied to `embedding`."""

    embedding: Any  # [V D]
    layers: Layers
    norm: Any  # [D]
    unembedding: Any  # [V D] or None

    @property
    def output(self):
        """[V D], the matrix that turns hidden states into logits."""
        return self.embedding if self.unembedding is None else self.unembedding


def declare(c: ModelConfig) -> Weights:
    """The declaration: a Weights tree whose leaves are Param."""
    std = 0.02
    deep = std / math.sqrt(2 * c.layers)

    def layer(shape, axes, name, inputs=0, std=None):
        return Param((c.layers, *shape), ("layers", *axes), "model.layers.{layer}." + name + ".weight", inputs, std)

    d, h, k, hd, f = c.width, c.heads, c.kv_heads, c.head_dim, c.feed_forward
    layers = Layers(
        attention_norm=layer((d,), ("width",), "input_layernorm"),
        query=layer((d, h, hd), ("width", "heads", "head"), "self_attn.q_proj", 1, std),
        key=layer((d, k, hd), ("width", "kv_heads", "head"), "self_attn.k_proj", 1, std),
        value=layer((d, k, hd), ("width", "kv_heads", "head"), "self_attn.v_proj", 1, std),
        query_norm=layer((hd,), ("head",), "self_attn.q_norm"),
        key_norm=layer((hd,), ("head",), "self_attn.k_norm"),
        out=layer((h, hd, d), ("heads", "head", "width"), "self_attn.o_proj", 2, deep),
        mlp_norm=layer((d,), ("width",), "post_attention_layernorm"),
        gate=layer((d, f), ("width", "feed_forward"), "mlp.gate_proj", 1, std),
        up=layer((d, f), ("width", "feed_forward"), "mlp.up_proj", 1, std),
        down=layer((f, d), ("feed_forward", "width"), "mlp.down_proj", 1, deep),
    )
    table = ("vocab", "width")
    return Weights(
        embedding=Param((c.vocab, d), table, "model.embed_tokens.weight", std=std),
        layers=layers,
        norm=Param((d,), ("width",), "model.norm.weight"),
        unembedding=None if c.tied else Param((c.vocab, d), table, "lm_head.weight", std=std),
    )


def count(c: ModelConfig) -> int:
    """Number of parameters."""
    return sum(math.prod(p.shape) for p in jax.tree.leaves(declare(c)))


def init(c: ModelConfig, seed: int) -> Weights:
    """Random float32 weights: normal with the declared deviation, norms at one; each tensor's key is its own name."""

    def one(param: Param):
        if param.std is None:
            return jnp.ones(param.shape, jnp.float32)
        return param.std * jax.random.normal(named_key(seed, "init", param.hf), param.shape, jnp.float32)

    return jax.tree.map(one, declare(c))


def rms_norm(x, scale, eps: float):
    """x / √(mean x² + eps) · scale over the last axis; the mean and the division in float32."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return wide.astype(x.dtype) * scale.astype(x.dtype)


def linear(x, w, inputs: int = 1):
    """x […, in…] · w [in…, out…] → […, out…] in x's dtype, `inputs` dimensions contracted.

    One plain matrix product over flattened dimensions: XLA's CPU backend is 1.7 times slower on the unflattened gradient.
    """
    rows, columns = x.shape[: x.ndim - inputs], w.shape[inputs:]
    size = math.prod(w.shape[:inputs])
    return (x.reshape(-1, size) @ w.astype(x.dtype).reshape(size, -1)).reshape(*rows, *columns)


def _block(c: ModelConfig, w: Layers, x, positions, attend):
    """One layer. x […, D], positions […]; `attend(q, k, v)` sees rotated q, k and gives […, H, C] and what to keep."""
    h = rms_norm(x, w.attention_norm, c.norm_eps)
    q = rotate(rms_norm(linear(h, w.query), w.query_norm, c.norm_eps), positions, c.rope_base)
    k = rotate(rms_norm(linear(h, w.key), w.key_norm, c.norm_eps), positions, c.rope_base)
    mixed, kept = attend(q, k, linear(h, w.value))
    x = x + linear(mixed, w.out, inputs=2)
    h = rms_norm(x, w.mlp_norm, c.norm_eps)
    return x + linear(jax.nn.silu(linear(h, w.gate)) * linear(h, w.up), w.down), kept


def forward(c: ModelConfig, weights: Weights, tokens, *, remat: bool = False, keep_kv: bool = False, dtype=jnp.float32):
    """Hidden states of right-padded rows: tokens [B T] → [B T D] after the last norm; causal, positions from 0.

    keep_kv: also give each layer's rotated keys and values, two arrays [L B T K C], as the sampler's prompt cache.
    remat: recompute each layer in the backward pass.
    """
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

    def layer(x, w):
        return _block(c, w, x, positions, lambda q, k, v: (causal_attention(q, k, v), (k, v) if keep_kv else None))

    x = weights.embedding.astype(dtype)[tokens]
    x, kv = jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, weights.layers)
    x = rms_norm(x, weights.norm, c.norm_eps)
    return (x, kv) if keep_kv else x


def decode_step(c: ModelConfig, weights: Weights, tokens, step, prompt_lengths, prompt_kv, response_kv, dtype=jnp.float32):
    """Append one token to every sample and give the hidden state that predicts the next.

    tokens [P G] stand at response index `step`; prompt_kv two arrays [L P S K C]; response_kv a list of (k, v),
    each [P G R K C], one pair a layer → (hidden [P G D], response_kv with index `step` filled in).
    Layers are unrolled: a cache carried through a scan would be copied at every layer.
    """
    p, g = tokens.shape
    positions = jnp.broadcast_to(prompt_lengths[:, None] + step, (p, g))
    prompt_mask = jnp.arange(prompt_kv[0].shape[2]) < prompt_lengths[:, None]
    x = weights.embedding.astype(dtype)[tokens]
    filled = []
    for i, (rk, rv) in enumerate(response_kv):

        def attend(q, k, v, i=i, rk=rk, rv=rv):
            rk = jax.lax.dynamic_update_slice_in_dim(rk, k[:, :, None], step, axis=2)
            rv = jax.lax.dynamic_update_slice_in_dim(rv, v[:, :, None], step, axis=2)
            prompt = (prompt_kv[0][i], prompt_kv[1][i])
            return decode_attention(q, prompt, (rk, rv), prompt_mask, step), (rk, rv)

        x, kept = _block(c, jax.tree.map(lambda a, i=i: a[i], weights.layers), x, positions, attend)
        filled.append(kept)
    return rms_norm(x, weights.norm, c.norm_eps), filled
