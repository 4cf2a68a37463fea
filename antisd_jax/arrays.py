"""Array helpers that every level uses. No I/O, no configuration.

Shape letters: B rows, T tokens of a row, R response tokens, V vocabulary, D width, P problems, G samples a problem.
"""

import base64
import zlib

import jax
import jax.numpy as jnp
import numpy as np


def check_shapes(**arrays: tuple[str, object]) -> dict[str, int]:
    """Bind dimension letters to sizes: `check_shapes(tokens=("B T", tokens), lengths=("B", lengths))["B"]`.

    Raises ValueError naming both arrays when one letter would stand for two sizes.
    """
    sizes: dict[str, int] = {}
    owner: dict[str, str] = {}
    for name, (letters, array) in arrays.items():
        shape, dims = np.shape(array), letters.split()
        if len(shape) != len(dims):
            raise ValueError(f"{name} has shape {shape}, wanted [{letters}]")
        for letter, size in zip(dims, shape):
            if sizes.setdefault(letter, size) != size:
                first = owner[letter]
                raise ValueError(f"{letter} is {sizes[letter]} in {first} {np.shape(arrays[first][1])} but {size} in {name} {shape}")
            owner.setdefault(letter, name)
    return sizes


def masked_mean(x, mask):
    """Σ x·mask / Σ mask over everything; 0 for an empty mask. Arrays of one shape; jax or numpy."""
    return (x * mask).sum() / np.maximum(mask.sum(), 1)


def response_mask(lengths, size: int):
    """[…] lengths → […, size] bool, true at the positions below each length."""
    return jnp.arange(size) < lengths[..., None]


def word(name: str) -> int:
    """A stable 31-bit number for a purpose's name, so that keys are derived from words instead of stored."""
    return zlib.crc32(name.encode()) & 0x7FFFFFFF


def named_key(seed: int, *parts: str | int):
    """A PRNG key that is a function of (seed, step, purpose, …) alone; words are hashed, numbers folded in."""
    key = jax.random.key(seed)
    for part in parts:
        key = jax.random.fold_in(key, word(part) if isinstance(part, str) else part)
    return key


def word_sum(x):
    """A 32-bit sum over the bits of an array, which changes when one element does, and nearly always when several do or change places; the same on any mesh.

    Σ (2·i + 1) · word_i modulo 2³², i the index in the flattened array: whole numbers, so that the order of the sum is nothing to it.
    """
    waits = x.sharding.memory_kind == "pinned_host"
    return _word_sum(jax.device_put(x, x.sharding.with_memory_kind("device")) if waits else x)


@jax.jit
def _word_sum(x):
    words = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    index = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum((2 * index + 1) * words, dtype=jnp.uint32)


def as_text(x: np.ndarray) -> dict:
    """An array as JSON can hold it; `from_text` gives it back, bit for bit."""
    return {"dtype": str(x.dtype), "shape": x.shape, "zlib": base64.b64encode(zlib.compress(np.ascontiguousarray(x), 1)).decode()}


def from_text(text: dict) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text["zlib"])), text["dtype"]).reshape(text["shape"])
