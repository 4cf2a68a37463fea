"""Every attention path against plain softmax in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from antisd_jax.model import attention
from antisd_jax.model.attention import chunked, decode_attention, library, splash
from antisd_jax.model.decoder import REMAT

LENGTHS = np.array([200, 131], np.int32)


def plain(q, k, v, window):
    """One row at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    n = q.shape[2] // k.shape[2]
    k, v = np.repeat(k, n, axis=2), np.repeat(v, n, axis=2)
    scores = np.einsum("bqhc,bshc->bhqs", q, k) / np.sqrt(q.shape[-1])
    back = np.arange(q.shape[1])[:, None] - np.arange(k.shape[1])
    seen = (back >= 0) & (back < (window or 10**9))
    weights = np.exp(np.where(seen, scores, -np.inf) - np.where(seen, scores, -np.inf).max(-1, keepdims=True))
    return np.einsum("bhqs,bshc->bqhc", weights / weights.sum(-1, keepdims=True), v)


def material(t, heads=4, kv_heads=2, c=8, b=2):
    rng = np.random.default_rng(t)
    return tuple(jnp.asarray(rng.normal(size=(b, t, h, c)), jnp.float32) for h in (heads, kv_heads, kv_heads))


def real(x, lengths=LENGTHS):
    """Without the padding."""
    return np.concatenate([np.asarray(row)[:n] for row, n in zip(x, lengths)])


@pytest.mark.parametrize("window", [None, 1, 24, 500])
@pytest.mark.parametrize("t", [1, 63, 200, 2500])
def test_chunks_equal_plain_attention(t, window):
    """From one chunk to several stretches of several chunks, the last ones cut short."""
    q, k, v = material(t, b=1)
    assert np.abs(np.asarray(chunked(q, k, v, window)) - plain(q, k, v, window)).max() < 1e-5


@pytest.mark.parametrize("window", [None, 24])
def test_the_library_is_called_with_the_right_masks(window):
    q, k, v = material(201)
    got = library(q, k, v, LENGTHS, window, "xla")
    assert got.shape == q.shape and np.abs(real(got) - real(plain(q, k, v, window))).max() < 1e-5


@pytest.fixture
def cudnn(monkeypatch):
    """Tracing as on a GPU, which has no say in it."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)


@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize("c", [8, 128])
def test_cudnn_takes_our_shapes(cudnn, window, c):
    """Traced with its gradient: an odd number of tokens, grouped heads, int32 lengths."""
    shapes = [jax.ShapeDtypeStruct((2, 201, h, c), jnp.bfloat16) for h in (4, 2, 2)]
    loss = lambda *x: library(*x, LENGTHS, window, "cudnn").astype(jnp.float32).sum()  # noqa: E731
    gradients = jax.eval_shape(jax.grad(loss, (0, 1, 2)), *shapes)
    assert [g.shape for g in gradients] == [s.shape for s in shapes]


@pytest.mark.parametrize("remat, runs", [("full", 2), ("attention", 1), ("dots", 1), ("none", 1)])
def test_cudnns_kernel_runs_once_where_its_output_is_kept(cudnn, remat, runs):
    """Its statistics as well: without them the backward pass would run the whole kernel again."""
    f = lambda *x: library(*x, LENGTHS, None, "cudnn")  # noqa: E731
    f = f if remat == "none" else jax.checkpoint(f, policy=REMAT[remat])
    shapes = [jax.ShapeDtypeStruct((2, 200, h, 64), jnp.bfloat16) for h in (4, 2, 2)]
    traced = jax.make_jaxpr(jax.grad(lambda *x: (f(*x).astype(jnp.float32) ** 2).sum(), (0, 1, 2)))(*shapes)
    assert str(traced).count("dot_product_attention_fwd_wrapper[") == runs


@pytest.mark.parametrize("window", [None, 24])
def test_the_tpu_kernel_equals_plain_attention_with_its_gradient(window):
    """Interpreted on the CPU: 200 tokens are padded to 256, and the padding is nobody's business."""
    q, k, v = material(200, c=128)
    mask = (np.arange(200) < LENGTHS[:, None])[..., None, None]
    weight = np.random.default_rng(0).normal(size=q.shape) * mask
    got = splash(q, k, v, LENGTHS, window, interpret=True)
    assert np.abs(real(got) - real(plain(q, k, v, window))).max() < 1e-4
    kernel = jax.grad(lambda *x: (splash(*x, LENGTHS, window, interpret=True) * weight).sum(), (0, 1, 2))(q, k, v)
    ours = jax.grad(lambda *x: (chunked(*x, window) * weight).sum(), (0, 1, 2))(q, k, v)
    for a, b in zip(kernel, ours):
        assert np.abs(a - b).max() < 1e-3 * np.abs(b).max()


@pytest.mark.parametrize("window", [None, 300])
def test_memory_does_not_grow_with_the_square_of_the_length(window):
    """Temporaries of forward and backward, as compiled: four times the tokens, at most about four times the memory."""

    def temporaries(t):
        shapes = [jax.ShapeDtypeStruct((1, t, h, 8), jnp.float32) for h in (4, 2, 2)]
        gradient = jax.jit(jax.grad(lambda *x: chunked(*x, window).sum(), (0, 1, 2)))
        return gradient.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    short, long = temporaries(8192), temporaries(32768)
    assert long < 5 * short
    assert long < 4 * 4 * 32768**2 / 20  # the scores of four heads


@pytest.mark.parametrize("on, kv_heads", [("cpu", 2), ("gpu", 2), ("gpu", 4)])
@pytest.mark.parametrize("window", [None, 3, 7])
def test_a_decoded_token_attends_as_the_whole_sequence_does(monkeypatch, window, on, kv_heads):
    """Slots whose sequences begin in columns 1 and 6: eight stored columns of twelve are written, five of the block's six."""
    rng = np.random.default_rng(1)
    starts, written, block = np.array([1, 6]), 8, 5
    monkeypatch.setattr(attention, "platform", lambda: on)
    stored = rng.normal(size=(2, 2, kv_heads, 12, 8)).astype(np.float32)  # k and v: slot, head, column, channel
    recent = rng.normal(size=(2, 2, kv_heads, 6, 8)).astype(np.float32)
    q = rng.normal(size=(2, 4, 8)).astype(np.float32)
    column = np.arange(18)
    place = np.where(column < 12, column, written + column - 12)
    seen = (place >= starts[:, None]) & ((column < written) | ((column >= 12) & (column < 12 + block)))
    seen &= place > written + block - 1 - (window or 99)
    got = np.asarray(decode_attention(q, *((k.swapaxes(2, 3), v) for k, v in (stored, recent)), seen))
    for i, start in enumerate(starts):
        k, v = (np.concatenate([stored[x, i, :, start:written], recent[x, i, :, :block]], axis=1).swapaxes(0, 1)[None] for x in (0, 1))
        every = np.zeros((1, k.shape[1], 4, 8))
        every[0, -1] = q[i]
        assert np.abs(got[i] - plain(every, k, v, window)[0, -1]).max() < 1e-5
