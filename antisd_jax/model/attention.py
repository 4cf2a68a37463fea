"""Attention for whole sequences and for one decoded token.

Shape letters: B rows, T tokens, H query heads, K key/value heads, N = H // K query heads a key/value head, C head channels,
P problems, G samples a problem, S prompt tokens, R response tokens. Query head h reads key/value head h // N.
"""

from functools import partial

import jax
import jax.numpy as jnp

HIDDEN = -1e30  # a masked score: finite, so that a fully masked row stays a number


def causal_attention(q, k, v):
    """softmax(q·kᵀ/√C + causal mask)·v. q [B T H C], k and v [B T K C] → [B T H C].

    Rows are right-padded, so causality alone hides the padding from every real token. On accelerators the library's
    kernel; on the CPU query chunks of at least 64 tokens, each against its own prefix and recomputed in the backward pass.
    """
    if jax.default_backend() != "cpu":
        return jax.nn.dot_product_attention(q, k, v, is_causal=True)
    b, t, h, c = q.shape
    kv = k.shape[2]
    n = h // kv
    q = (q * c**-0.5).reshape(b, t, kv, n, c).transpose(0, 2, 1, 3, 4).reshape(b, kv, t * n, c)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    chunk = max(64, -(-t // 16))
    out = []
    for start in range(0, t, chunk):
        end = min(start + chunk, t)
        out.append(_prefix_attention(q[:, :, start * n : end * n], k[:, :, :end], v[:, :, :end], n, start))
    return jnp.concatenate(out, axis=2).reshape(b, kv, t, n, c).transpose(0, 2, 1, 3, 4).reshape(b, t, h, c)


@partial(jax.checkpoint, static_argnums=(3, 4))
def _prefix_attention(q, k, v, n: int, start: int):
    """q [B K X·N C], X query tokens from `start` on with their N heads; k, v [B K Y C] from token 0 → [B K X·N C]."""
    scores = jnp.einsum("bkqc,bksc->bkqs", q, k, preferred_element_type=jnp.float32)
    position = start + jnp.arange(q.shape[2]) // n
    scores = jnp.where(position[:, None] >= jnp.arange(k.shape[2]), scores, HIDDEN)
    return jnp.einsum("bkqs,bksc->bkqc", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)


def decode_attention(q, prompt_kv, response_kv, prompt_mask, step):
    """One new token a sample against its problem's prompt and its own response so far.

    q [P G H C]; prompt k, v [P S K C], shared by the G samples; response k, v [P G R K C], filled up to and including
    `step`; prompt_mask [P S] → [P G H C]. Scores and softmax in float32.
    """
    p, g, h, c = q.shape
    (pk, pv), (rk, rv) = prompt_kv, response_kv
    kv = pk.shape[2]
    q = (q * c**-0.5).reshape(p, g, kv, h // kv, c)
    f32 = dict(preferred_element_type=jnp.float32)
    on_prompt = jnp.einsum("pgknc,pskc->pgkns", q, pk, **f32)
    on_response = jnp.einsum("pgknc,pgrkc->pgknr", q, rk, **f32)
    on_prompt = jnp.where(prompt_mask[:, None, None, None, :], on_prompt, HIDDEN)
    on_response = jnp.where(jnp.arange(rk.shape[2]) <= step, on_response, HIDDEN)
    weights = jax.nn.softmax(jnp.concatenate([on_prompt, on_response], axis=-1), axis=-1).astype(q.dtype)
    w_prompt, w_response = jnp.split(weights, [pk.shape[1]], axis=-1)
    out = jnp.einsum("pgkns,pskc->pgknc", w_prompt, pv) + jnp.einsum("pgknr,pgrkc->pgknc", w_response, rv)
    return out.reshape(p, g, h, c)
