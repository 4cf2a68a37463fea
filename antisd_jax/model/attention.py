"""Attention for whole sequences and for one decoded token.

Shape letters: B rows, T tokens, H query heads, K key/value heads, N = H // K query heads a key/value head, C head channels,
P problems, G samples a problem, S prompt tokens, R response tokens. Query head h reads key/value head h // N.
A window of W tokens lets position i see positions i − W + 1 … i.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from antisd_jax.model.sharding import on_shards, platform

HIDDEN = -1e30  # a masked score: finite, so that a fully masked row stays a number
CHUNK = 128  # queries whose scores exist at one time on the CPU
SEGMENTS = 16  # stretches of queries, each against its own prefix only
UNROLLED = 64  # head channels that are written out one by one
LANES = 128  # a TPU kernel's sequences are multiples of this


def attention(q, k, v, lengths, window: int | None = None):
    """softmax(q·kᵀ/√C + causal or windowed mask)·v. q [B T H C], k and v [B T K C], lengths [B] → [B T H C].

    Rows are right-padded: row b is lengths[b] tokens long and what stands at and beyond that is finite and meaningless.
    TPU: the splash kernel. GPU: cuDNN, in 16-bit types and heads it knows. Elsewhere query chunks against their prefix, in memory linear in T.
    remat=attention keeps what the kernels' gradients need: by the name "attention", of cuDNN by its primitive (decoder.REMAT).
    """
    on = platform()
    if on == "tpu":
        return splash(q, k, v, lengths, window)
    if on == "gpu" and q.dtype.itemsize == 2 and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128:
        return library(q, k, v, lengths, window, "cudnn")
    return checkpoint_name(chunked(q, k, v, window), "attention")


def library(q, k, v, lengths, window, implementation: str):
    """JAX's own attention, in an even number of tokens: cuDNN's gradient wants one."""
    t = q.shape[1]
    q, k, v = (jnp.pad(x, ((0, 0), (0, t % 2), (0, 0), (0, 0))) for x in (q, k, v))
    seen = None if window is None else (window - 1, 0)
    sizes = dict(query_seq_lengths=lengths, key_value_seq_lengths=lengths)
    out = jax.nn.dot_product_attention(q, k, v, is_causal=True, local_window_size=seen, implementation=implementation, **sizes)
    return out[:, :t]


def splash(q, k, v, lengths, window, interpret: bool = False):
    """The TPU kernel, on each device's own rows and heads; padding is a segment of its own."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    t = q.shape[1]
    size = -(-t // LANES) * LANES
    mask = masks.CausalMask((size, size)) if window is None else masks.LocalMask((size, size), (window - 1, 0), 0)
    block = next(b for b in (512, 256, 128) if size % b == 0)
    whole = dict(block_q=block, block_kv=block, block_kv_compute=block)
    backward = dict(block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block)

    def local(q, k, v, lengths):
        run = kernel.make_splash_mha(
            masks.MultiHeadMask([mask] * q.shape[2]),
            head_shards=1,
            q_seq_shards=1,
            block_sizes=kernel.BlockSizes(**whole, **backward),
            residual_checkpoint_name="attention",
            interpret=interpret,
        )

        def row(q, k, v, length):
            segment = (jnp.arange(size) < length).astype(jnp.int32)
            q, k, v = (jnp.pad(x, ((0, size - t), (0, 0), (0, 0))).transpose(1, 0, 2) for x in (q, k, v))
            return run(q, k, v, kernel.SegmentIds(segment, segment)).transpose(1, 0, 2)[:t]

        return jax.vmap(row)(q, k, v, lengths)

    heads, kv_heads = ("rows", None, "heads", None), ("rows", None, "kv_heads", None)
    scaled = q * q.shape[-1] ** -0.5
    return on_shards(local, (heads, kv_heads, kv_heads, ("rows",)), heads)(scaled, k, v, lengths)


def chunked(q, k, v, window):
    """Plain XLA: at most SEGMENTS stretches of queries, each against the keys it can see, in chunks of CHUNK queries.

    Causality alone hides the padding. Chunks are recomputed in the backward pass.
    """
    b, t, h, c = q.shape
    kv = k.shape[2]
    n = h // kv
    q = (q * c**-0.5).reshape(b, t, kv, n, c).transpose(0, 2, 1, 3, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    stretch = max(64, -(-t // SEGMENTS))
    if stretch > CHUNK:
        stretch = -(-stretch // CHUNK) * CHUNK
    out = []
    for start in range(0, t, stretch):
        end = min(start + stretch, t)
        first = 0 if window is None else max(0, start - window + 1)
        out.append(_stretch(q[:, :, start:end], k[:, :, first:end], v[:, :, first:end], start - first, window))
    return jnp.concatenate(out, axis=2).transpose(0, 2, 1, 3, 4).reshape(b, t, h, c)


def _stretch(q, k, v, offset: int, window):
    """q [B K X N C], whose first query stands at key `offset`; k, v [B K Y C] → [B K X N C]."""
    b, kv, x, n, c = q.shape
    if x <= CHUNK:
        return _chunk(q, k, v, offset, window)
    chunks = -(-x // CHUNK)
    q = jnp.pad(q, ((0, 0), (0, 0), (0, chunks * CHUNK - x), (0, 0), (0, 0)))
    q = jnp.moveaxis(q.reshape(b, kv, chunks, CHUNK, n, c), 2, 0)
    out = jax.lax.map(lambda a: _chunk(a[0], k, v, offset + a[1] * CHUNK, window), (q, jnp.arange(chunks)))
    return jnp.moveaxis(out, 0, 2).reshape(b, kv, chunks * CHUNK, n, c)[:, :, :x]


@partial(jax.checkpoint, static_argnums=4)
def _chunk(q, k, v, offset, window):
    b, kv, x, n, c = q.shape
    scores = jnp.einsum("bkqc,bksc->bkqs", q.reshape(b, kv, x * n, c), k, preferred_element_type=jnp.float32)
    back = (offset + jnp.arange(x * n) // n)[:, None] - jnp.arange(k.shape[2])  # how far behind its query a key stands
    seen = back >= 0 if window is None else (back >= 0) & (back < window)
    weights = jax.nn.softmax(jnp.where(seen, scores, HIDDEN), axis=-1).astype(v.dtype)
    return jnp.einsum("bkqs,bksc->bkqc", weights, v).reshape(b, kv, x, n, c)


def decode_attention(q, stored, recent, seen):
    """One new token a row against its stored columns and the recent ones.

    q [S H C]; stored and recent: (keys [S K C B], values [S K B C]), B columns each; seen [S B + B'] says which columns of
    both, in that order, belong to the row → [S H C]. Scores and softmax in float32. Keys stand with their channels outside:
    a score is then a sum over contiguous columns.
    """
    s, h, c = q.shape
    (sk, sv), (rk, rv) = stored, recent
    kv = sk.shape[1]
    q = (q * c**-0.5).reshape(s, kv, h // kv, c)
    scores = jnp.where(seen[:, None, None], jnp.concatenate([_scores(q, keys) for keys in (sk, rk)], axis=-1), HIDDEN)
    on_stored, on_recent = jnp.split(jax.nn.softmax(scores, axis=-1).astype(q.dtype), [sk.shape[3]], axis=-1)
    out = jnp.einsum("skgb,skbc->skgc", on_stored, sv) + jnp.einsum("skgb,skbc->skgc", on_recent, rv)
    return out.reshape(s, h, c)


def _scores(q, keys):
    """q [S K G C], keys [S K C B] → [S K G B] float32. On the CPU one fused loop: XLA's small products there run at half the memory's speed.

    A GPU's product of single vectors XLA would make a sum over turned keys, a copy of them all; with a second, empty query it stays a product.
    """
    if platform() == "cpu" and q.dtype == jnp.float32 and q.shape[-1] <= UNROLLED:
        return sum(q[..., c, None] * keys[:, :, None, c] for c in range(q.shape[-1]))
    if platform() == "gpu" and q.shape[2] == 1:
        return _scores(jnp.concatenate([q, jnp.zeros_like(q)], axis=2), keys)[:, :, :1]
    return jnp.einsum("skgc,skcb->skgb", q, keys, preferred_element_type=jnp.float32)
