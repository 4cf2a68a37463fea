"""What a model is made of: the numbers of its architecture and the one declaration of its parameters.

Abstract shapes, initial values, shardings, Hugging Face names and the checkpoint's structure are readings of `declare`.
Shape letters: V vocabulary, D width, H query heads, K key/value heads, C head channels, F feed-forward width, L layers,
E experts.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from antisd_jax.arrays import named_key
from antisd_jax.model.rope import Rope
from antisd_jax.model.sharding import param_shardings


@dataclass(frozen=True)
class LayerKind:
    """How a layer attends. window: tokens a position sees, itself included; None: all before it."""

    rope: Rope
    window: int | None = None


@dataclass(frozen=True)
class Experts:
    """A mixture in place of each feed-forward block. renormalise: the chosen experts' probabilities are made to sum to 1."""

    count: int
    per_token: int
    renormalise: bool


@dataclass(frozen=True)
class ModelConfig:
    """The numbers of one architecture, as read from its config.json. Layer i is of kind `kinds[i % len(kinds)]`."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int  # of one expert, where there are experts
    kinds: tuple[LayerKind, ...]
    norm_eps: float = 1e-6
    tied: bool = False
    norm_after: bool = False  # norms stand after attention and feed-forward, not before them
    norm_whole: bool = False  # queries and keys are normalised over all heads at once, not each head by itself
    experts: Experts | None = None


@dataclass(frozen=True)
class Param:
    """One declared parameter.

    axes are logical names, one a dimension. hf is the Hugging Face tensor name; each {…} in it stands for one leading
    dimension ("layers", "experts") that is a tensor of its own there. inputs counts the dimensions after those that are
    contracted with the activation: Hugging Face stores the rest as [out, in], ours are [in…, out…]; None: stored as it is.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    hf: str
    inputs: int | None = 0
    std: float | None = None  # None: ones

    @property
    def lead(self) -> int:
        """Number of leading dimensions that are separate tensors in a Hugging Face folder."""
        return self.hf.count("{")


@struct.dataclass
class Layers:
    """All layers' parameters, stacked on a leading L. With experts, gate, up and down are [L E …] and there is a router."""

    attention_norm: Any  # [L D]
    query: Any  # [L D H C]
    key: Any  # [L D K C]
    value: Any  # [L D K C]
    query_norm: Any  # [L C], or [L H C] for a norm over all heads
    key_norm: Any  # [L C], or [L K C]
    out: Any  # [L H C D]
    mlp_norm: Any  # [L D]
    router: Any  # [L D E] or None
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
    d, h, k, hd, f = c.width, c.heads, c.kv_heads, c.head_dim, c.feed_forward

    def layer(shape, axes, name, inputs=0, std=None):
        return Param((c.layers, *shape), ("layers", *axes), "model.layers.{layer}." + name + ".weight", inputs, std)

    def mlp(shape, axes, name, std):
        if not c.experts:
            return layer(shape, axes, f"mlp.{name}", 1, std)
        axes = tuple("expert_width" if a == "width" else a for a in axes)
        return layer((c.experts.count, *shape), ("experts", *axes), "mlp.experts.{expert}." + name, 1, std)

    def head_norm(heads, axis, name):
        return layer((heads, hd), (axis, "head"), name) if c.norm_whole else layer((hd,), ("head",), name)

    before = ("input_layernorm", "post_attention_layernorm")
    after = ("post_attention_layernorm", "post_feedforward_layernorm")
    attention_norm, mlp_norm = after if c.norm_after else before
    layers = Layers(
        attention_norm=layer((d,), ("width",), attention_norm),
        query=layer((d, h, hd), ("width", "heads", "head"), "self_attn.q_proj", 1, std),
        key=layer((d, k, hd), ("width", "kv_heads", "head"), "self_attn.k_proj", 1, std),
        value=layer((d, k, hd), ("width", "kv_heads", "head"), "self_attn.v_proj", 1, std),
        query_norm=head_norm(h, "heads", "self_attn.q_norm"),
        key_norm=head_norm(k, "kv_heads", "self_attn.k_norm"),
        out=layer((h, hd, d), ("heads", "head", "width"), "self_attn.o_proj", 2, deep),
        mlp_norm=layer((d,), ("width",), mlp_norm),
        router=layer((d, c.experts.count), ("width", "routes"), "mlp.gate", 1, std) if c.experts else None,
        gate=mlp((d, f), ("width", "feed_forward"), "gate_proj", std),
        up=mlp((d, f), ("width", "feed_forward"), "up_proj", std),
        down=mlp((f, d), ("feed_forward", "width"), "down_proj", deep),
    )
    table = ("vocab", "width")
    return Weights(
        embedding=Param((c.vocab, d), table, "model.embed_tokens.weight", None, std),
        layers=layers,
        norm=Param((d,), ("width",), "model.norm.weight"),
        unembedding=None if c.tied else Param((c.vocab, d), table, "lm_head.weight", None, std),
    )


def count(c: ModelConfig) -> int:
    """Number of parameters."""
    return sum(math.prod(p.shape) for p in jax.tree.leaves(declare(c)))


def multiplied(c: ModelConfig) -> int:
    """Parameters that a token is multiplied with: its own experts, and the table once, as the matrix that gives logits."""
    looked_up = 0 if c.tied else c.vocab * c.width
    idle = 3 * c.layers * c.width * c.feed_forward * (c.experts.count - c.experts.per_token) if c.experts else 0
    return count(c) - looked_up - idle


def abstract(c: ModelConfig, mesh, dtype=jnp.float32) -> Weights:
    """Shapes, dtype and shardings of the weights, without any data."""
    declared = declare(c)
    return jax.tree.map(lambda p, s: jax.ShapeDtypeStruct(p.shape, dtype, sharding=s), declared, param_shardings(mesh, declared))


def init(c: ModelConfig, seed: int) -> Weights:
    """Random float32 weights: normal with the declared deviation, norms at one; each tensor's key is its own name."""

    def one(param: Param):
        if param.std is None:
            return jnp.ones(param.shape, jnp.float32)
        return param.std * jax.random.normal(named_key(seed, "init", param.hf), param.shape, jnp.float32)

    return jax.tree.map(one, declare(c))
