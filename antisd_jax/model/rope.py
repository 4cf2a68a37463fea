"""Rotary position embedding, in the half-split layout of the Hugging Face checkpoints, with YaRN (arXiv 2309.00071)."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Yarn:
    """Extends the context `factor` times beyond `original` tokens.

    Pairs that turn more than beta_fast times within `original` tokens keep their frequency, those that turn less than
    beta_slow times are slowed down by `factor`, with a ramp between. Rotated vectors are scaled by attention_factor.
    """

    factor: float
    original: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True  # the ramp begins and ends at whole pairs


@dataclass(frozen=True)
class Rope:
    base: float
    yarn: Yarn | None = None

    def frequencies(self, head_dim: int) -> np.ndarray:
        """[C/2] radians a token, float32.

        The power is rounded to float32 before it is inverted, as in the reference implementation: at position 32768 the
        last bit of a frequency is a thousandth of a radian.
        """
        pairs = np.arange(0, head_dim, 2) / head_dim
        power = np.power(self.base, pairs).astype(np.float32)
        plain = np.float32(1) / power
        if self.yarn is None:
            return plain
        y = self.yarn
        low, high = (head_dim * math.log(y.original / (2 * math.pi * b)) / (2 * math.log(self.base)) for b in (y.beta_fast, y.beta_slow))
        if y.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        kept = 1 - np.clip((np.arange(head_dim // 2) - low) / max(high - low, 0.001), 0, 1).astype(np.float32)
        return (1 - kept) / (np.float32(y.factor) * power) + plain * kept


def rotate(x, positions, rope: Rope):
    """Rotate each pair (x_i, x_{i+C/2}) by positions · frequency_i.

    x […, heads, C], positions […] → […, heads, C] in x's dtype; angles in float32.
    """
    half = x.shape[-1] // 2
    angles = positions.astype(jnp.float32)[..., None, None] * rope.frequencies(x.shape[-1])
    scale = rope.yarn.attention_factor if rope.yarn else 1.0
    cos, sin = jnp.cos(angles) * scale, jnp.sin(angles) * scale
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
