"""The decoder against transformers on torch: logits, gradients, greedy decoding, routing, rotary tables."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import sharpened
from families import OLMO3_7B, QWEN3_4B_2507, QWEN3_8B, QWEN3_30B_A3B, REAL, small

from antisd_jax.model.decoder import forward
from antisd_jax.model.hf import from_stored, load_weights, names, save_weights, tensor_shapes
from antisd_jax.model.logprobs import token_logprobs
from antisd_jax.model.moe import route
from antisd_jax.model.parameters import declare, init
from antisd_jax.model.rope import rotate
from antisd_jax.model.settings import load_config, parse
from antisd_jax.rollout.engine import generate
from antisd_jax.rollout.sampling import Sampling

torch = pytest.importorskip("torch", reason="comparison with torch needs the 'parity' extra")
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

T = 150  # beyond the small Olmo-3's original context of 64 and its window of 24
TOKENS = np.random.default_rng(0).integers(1, 96, (3, T))
CASES = {
    "qwen3": small(QWEN3_8B),
    "qwen3 5e6 tied": small(QWEN3_4B_2507),
    "qwen3_moe": small(QWEN3_30B_A3B),
    "qwen3_moe not renormalised": small(QWEN3_30B_A3B, norm_topk_prob=False),
    "olmo3": small(OLMO3_7B),
}


def uneven(weights):
    """No two norm scales alike; and where the embedding is also the output, it does not simply repeat its input."""
    rng = np.random.default_rng(0)
    weights = jax.tree.map(lambda x: x * rng.uniform(0.7, 1.3, x.shape).astype(np.float32) if np.ptp(x) == 0 else x, weights)
    return weights if weights.unembedding is not None else weights.replace(embedding=weights.embedding / 2)


@pytest.fixture(scope="module", params=CASES, ids=lambda n: n.replace(" ", "-"))
def pair(request, tmp_path_factory, mesh1):
    """(our numbers, our weights, the same folder in transformers)."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(CASES[request.param]))
    c = load_config(folder)
    save_weights(folder, c, uneven(sharpened(init(c, 3))))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    return c, load_weights(folder, c, mesh1), theirs


def test_logits_equal(pair):
    c, weights, theirs = pair
    with torch.no_grad():
        expected = theirs(torch.tensor(TOKENS)).logits.numpy()
    hidden, _ = forward(c, weights, TOKENS)
    assert np.abs(expected).max() > 3
    assert np.abs(np.asarray(hidden @ weights.output.T) - expected).max() < 1e-4


def test_greedy_decoding_says_the_same_64_tokens(pair):
    c, weights, theirs = pair
    lengths = np.array([40, 17, 33])
    prompts = np.where(np.arange(40) < lengths[:, None], TOKENS[:, :40], 0)
    ids = np.arange(3, dtype=np.uint32)
    got, _ = generate(
        weights, prompts, lengths, jax.random.key(0), ids, ids[:, None], c=c, responses=64, sampling=Sampling(temperature=0.0), stop=(999,)
    )
    assert len(set(np.asarray(got.tokens).reshape(-1).tolist())) > (2 if c.tied else 20)
    for row, n, said in zip(prompts, lengths, np.asarray(got.tokens)[:, 0]):
        ids = torch.tensor(row[None, :n])
        kept = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=64, min_new_tokens=64, eos_token_id=999
        )
        assert said.tolist() == kept[0, n:].tolist()


def test_gradients_of_a_token_loss_equal(pair):
    c, weights, theirs = pair
    weight = np.random.default_rng(1).normal(size=(3, T - 1)).astype(np.float32)

    def loss(w):
        hidden, _ = forward(c, w, TOKENS, remat="full")
        return (token_logprobs(hidden[:, :-1], w.output, TOKENS[:, 1:], 1.0, 64)[0] * weight).sum()

    ours = jax.jit(jax.grad(loss))(weights)
    theirs.zero_grad()
    logp = torch.log_softmax(theirs(torch.tensor(TOKENS)).logits[:, :-1], -1)
    (logp.gather(-1, torch.tensor(TOKENS)[:, 1:, None])[..., 0] * torch.tensor(weight)).sum().backward()
    gradients = stored_gradients(theirs, c)
    for param, mine in zip(jax.tree.leaves(declare(c)), jax.tree.leaves(ours)):
        for index, name in zip(np.ndindex(param.shape[: param.lead]), names(param), strict=True):
            wanted = from_stored(param, gradients.pop(name))
            scale = np.abs(wanted).max()
            assert np.abs(np.asarray(mine[index]) - wanted).max() <= 1e-3 * scale, name
    assert not gradients


def stored_gradients(theirs, c) -> dict:
    """Gradients under the names of the files: transformers 5 holds a layer's experts in two fused tensors."""
    out = {}
    for name, p in theirs.named_parameters():
        grad = p.grad.numpy()
        if "experts.gate_up_proj" in name:
            for e, g in enumerate(grad):
                out[name.replace("gate_up_proj", f"{e}.gate_proj.weight")] = g[: c.feed_forward]
                out[name.replace("gate_up_proj", f"{e}.up_proj.weight")] = g[c.feed_forward :]
        elif "experts.down_proj" in name:
            out |= {name.replace("down_proj", f"{e}.down_proj.weight"): g for e, g in enumerate(grad)}
        else:
            out[name] = grad
    return out


@pytest.mark.parametrize("name", REAL)
def test_rotary_tables_of_the_real_configs_equal_up_to_their_last_position(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(REAL[name]))
    theirs = AutoConfig.from_pretrained(tmp_path)
    c = parse(REAL[name], name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs)
    rotary = type(model.model.rotary_emb)(theirs)
    positions = np.unique(np.geomspace(1, REAL[name]["max_position_embeddings"] - 1, 500).astype(int))
    x = np.random.default_rng(0).normal(size=(len(positions), 1, c.head_dim)).astype(np.float32)
    for i, kind in enumerate(c.kinds):
        extra = (REAL[name]["layer_types"][i],) if c.norm_after else ()
        cos, sin = (t[0].numpy() for t in rotary(torch.tensor(x), torch.tensor(positions)[None], *extra))
        half = c.head_dim // 2
        turned = np.concatenate([-x[..., half:], x[..., :half]], axis=-1)
        expected = x * cos[:, None] + turned * sin[:, None]
        assert np.abs(np.asarray(rotate(x, positions, kind.rope)) - expected).max() < 1e-2
        near = positions < 4096
        assert np.abs(np.asarray(rotate(x, positions, kind.rope)) - expected)[near].max() < 1e-3


@pytest.mark.parametrize("name", REAL)
def test_names_and_counts_of_the_real_configs_equal(name, tmp_path):
    """transformers, told of the config alone, makes the same parameters; its fused experts are counted as one tensor each."""
    (tmp_path / "config.json").write_text(json.dumps(REAL[name]))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    theirs = {n: tuple(p.shape) for n, p in model.named_parameters() if "experts" not in n}
    ours = tensor_shapes(parse(REAL[name], name))
    assert {n: s for n, s in ours.items() if "experts" not in n} == theirs
    assert sum(int(np.prod(s)) for s in ours.values()) == sum(p.numel() for p in model.parameters())


def test_routing_chooses_as_torch_does():
    """Where the last chosen and the first left out differ, the choice is torch.topk's; among equals the lower index wins, which
    is torch.sort's stable order (topk's own choice among equals is not specified)."""
    experts = parse(CASES["qwen3_moe"], "").experts
    rng = np.random.default_rng(0)
    for levels in (None, 3):
        logits = rng.normal(size=(500, 16)).astype(np.float32) if levels is None else rng.integers(0, levels, (500, 16)).astype(np.float32)
        probabilities, chosen = map(np.asarray, route(jnp.asarray(logits), np.eye(16, dtype=np.float32), experts))
        p = torch.softmax(torch.tensor(logits), -1)
        order = torch.sort(p, descending=True, stable=True)
        assert (chosen == order.indices[:, :4].numpy()).all()
        top = torch.topk(p, 4)
        assert np.abs(probabilities - (top.values / top.values.sum(-1, keepdim=True)).numpy()).max() < 1e-6
        if levels is None:
            assert (chosen == top.indices.numpy()).all()
