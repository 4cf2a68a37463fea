"""The scorer: log-prob and entropy of given response tokens. Student, teacher and evaluation share it."""

from functools import partial

import jax
import jax.numpy as jnp

from antisd_jax.arrays import check_shapes
from antisd_jax.model.decoder import forward
from antisd_jax.model.logprobs import token_logprobs
from antisd_jax.model.parameters import ModelConfig, Weights
from antisd_jax.types import Rows, Scores


def exact_products(dtype: str):
    """A context in which float32 means float32: by default accelerators round the factors of float32 matrix products."""
    return jax.default_matmul_precision("highest" if dtype == "float32" else None)


def score_rows(c: ModelConfig, weights: Weights, rows: Rows, responses: int, temperature: float, *, remat="none", dtype=jnp.float32):
    """One micro-batch: rows.tokens [B T] → (Scores with arrays [B R], R = `responses`; the experts' load [L E] or None).

    Only the R hidden states that predict response tokens meet the vocabulary. Entries at and beyond a row's
    response_length are finite and meaningless.
    """
    check_shapes(tokens=("B T", rows.tokens), prompt_lengths=("B", rows.prompt_lengths), response_lengths=("B", rows.response_lengths))
    lengths = rows.prompt_lengths + rows.response_lengths
    hidden, kept = forward(c, weights, rows.tokens, lengths, remat=remat, dtype=dtype)
    last = rows.tokens.shape[1] - 1
    index = rows.prompt_lengths[:, None] + jnp.arange(responses)
    before = jnp.clip(index - 1, 0, last)
    targets = jnp.take_along_axis(rows.tokens, jnp.clip(index, 0, last), axis=1)
    hidden = jnp.take_along_axis(hidden, before[..., None], axis=1)
    return Scores(*token_logprobs(hidden, weights.output, targets, temperature)), kept.load


@partial(jax.jit, static_argnames=("c", "responses", "dtype"))
def score(weights: Weights, rows: Rows, temperature: float, *, c: ModelConfig, responses: int, dtype=jnp.float32) -> Scores:
    """One micro-batch: rows.tokens [B T] → Scores with arrays [B R]."""
    return score_rows(c, weights, rows, responses, temperature, dtype=dtype)[0]
