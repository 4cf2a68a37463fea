"""Rotary position embedding, in the half-split layout of the Hugging Face checkpoints."""

import jax.numpy as jnp


def rotate(x, positions, base: float):
    """Rotate each pair (x_i, x_{i+C/2}) by positions · base^(−2i/C).

    x […, heads, C], positions […] → […, heads, C] in x's dtype; angles in float32.
    """
    half = x.shape[-1] // 2
    frequencies = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions.astype(jnp.float32)[..., None, None] * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
