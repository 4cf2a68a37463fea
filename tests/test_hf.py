"""Hugging Face folders in and out: config.json, safetensors, every tensor accounted for."""

import json
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from conftest import sharpened
from families import OLMO3_7B, QWEN3_8B, QWEN3_30B_A3B, REAL, small
from safetensors.numpy import load_file, save_file

from antisd_jax.errors import UserError
from antisd_jax.model import hf
from antisd_jax.model.parameters import init
from antisd_jax.model.settings import load_config, parse, render, stop_tokens
from antisd_jax.model.sharding import MeshConfig, make_mesh

TYPES = {"qwen3": QWEN3_8B, "qwen3_moe": QWEN3_30B_A3B, "olmo3": OLMO3_7B}


def write(folder, model, weights, **changes):
    hf.save_weights(folder, model, weights)
    settings = render(model, eos=2, bos=None, positions=512) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if v is not ...}))
    return folder


def expected_names(raw) -> set[str]:
    """The tensors of the published folders, written down from the architectures."""
    layers = range(raw["num_hidden_layers"])
    attention = [f"self_attn.{n}" for n in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")]
    if raw["model_type"] == "olmo3":
        norms = ["post_attention_layernorm", "post_feedforward_layernorm"]
    else:
        norms = ["input_layernorm", "post_attention_layernorm"]
    mlp = [f"mlp.{n}" for n in ("gate_proj", "up_proj", "down_proj")]
    if raw["model_type"] == "qwen3_moe":
        mlp = ["mlp.gate"] + [f"mlp.experts.{e}.{n}_proj" for e in range(raw["num_experts"]) for n in ("gate", "up", "down")]
    names = {f"model.layers.{i}.{n}.weight" for i in layers for n in attention + norms + mlp}
    names |= {"model.embed_tokens.weight", "model.norm.weight"}
    return names if raw["tie_word_embeddings"] else names | {"lm_head.weight"}


TENSORS = {
    "Qwen3-8B": 399,
    "Qwen3-4B-Instruct-2507": 398,
    "Olmo-3-7B-Instruct": 355,
    "Olmo-3-7B-Think": 355,
    "Qwen3-30B-A3B": 18_867,
}


@pytest.mark.parametrize("name", REAL)
def test_every_tensor_name_of_the_published_folders_is_covered(name):
    shapes = hf.tensor_shapes(parse(REAL[name], name))
    assert set(shapes) == expected_names(REAL[name])
    assert len(shapes) == TENSORS[name]
    c = REAL[name]
    width = c["num_attention_heads"] * c.get("head_dim", 128)
    assert shapes["model.layers.3.self_attn.q_proj.weight"] == (width, c["hidden_size"])
    assert shapes["model.layers.3.self_attn.o_proj.weight"] == (c["hidden_size"], width)
    assert shapes["model.layers.3.self_attn.q_norm.weight"] == ((width,) if c["model_type"] == "olmo3" else (128,))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", TYPES)
@pytest.mark.parametrize("shard_bytes", [2**40, 20_000])
def test_round_trip_through_a_folder_is_bit_identical(tmp_path, family, dtype, shard_bytes):
    """File → eight devices → file; in one file and in many with an index; bfloat16 is exact in float32."""
    c = parse(small(TYPES[family]), "")
    mesh = make_mesh(MeshConfig(1, 2, 2, 2))
    weights = sharpened(init(c, 1))
    hf.save_weights(tmp_path / "a", c, weights, jnp.dtype(dtype), shard_bytes)
    loaded = hf.load_weights(tmp_path / "a", c, mesh)
    for x, y in zip(jax.tree.leaves(weights), jax.tree.leaves(loaded), strict=True):
        assert y.dtype == jnp.float32 and (np.asarray(x.astype(dtype)) == np.asarray(y)).all()
    hf.save_weights(tmp_path / "b", c, loaded, jnp.dtype(dtype), shard_bytes)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert len(files) == 1 if shard_bytes > 10**9 else len(files) > 3
    assert files == sorted(p.name for p in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("name", REAL)
def test_both_spellings_of_the_real_configs_are_read_alike(name, tmp_path):
    """The newer one as transformers 5 writes it."""
    pytest.importorskip("torch", reason="transformers writes configs with torch alone")
    from transformers import AutoConfig

    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text(json.dumps(REAL[name]))
    AutoConfig.from_pretrained(tmp_path / "old").save_pretrained(tmp_path / "new")
    written = json.loads((tmp_path / "new" / "config.json").read_text())
    assert "rope_parameters" in written and "rope_theta" not in written and "rope_scaling" not in written
    assert load_config(tmp_path / "new") == load_config(tmp_path / "old") == parse(REAL[name], name)


@pytest.mark.parametrize("family", TYPES)
def test_a_rendered_config_is_read_back(family):
    c = parse(small(TYPES[family]), "")
    assert parse(render(c, eos=2, bos=None, positions=512), "") == c


def test_what_the_real_configs_say():
    kinds = parse(OLMO3_7B, "").kinds
    assert [k.window for k in kinds] == [4096, 4096, 4096, None]
    assert [k.rope.yarn is None for k in kinds] == [True, True, True, False]
    assert (kinds[3].rope.yarn.factor, kinds[3].rope.yarn.original, kinds[3].rope.base) == (8.0, 8192, 5e5)
    flat = OLMO3_7B["rope_scaling"] | {"rope_theta": 500000}
    assert (
        parse({k: v for k, v in OLMO3_7B.items() if k not in ("rope_scaling", "rope_theta")} | {"rope_parameters": flat}, "").kinds == kinds
    )
    assert parse(REAL["Qwen3-4B-Instruct-2507"], "").kinds[0].rope.base == 5e6
    experts = parse(QWEN3_30B_A3B, "").experts
    assert (experts.count, experts.per_token, experts.renormalise) == (128, 8, True)


def test_a_layer_pattern_without_repetition_is_taken_as_it_is():
    types = ["sliding_attention", "full_attention", "full_attention", "sliding_attention", "full_attention"]
    kinds = parse(OLMO3_7B | {"num_hidden_layers": 5, "layer_types": types}, "").kinds
    assert [k.window for k in kinds] == [4096, None, None, 4096, None]


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    "family, changes, message",
    [
        ("qwen3", {"model_type": "llama"}, "model_type is 'llama', wanted one of qwen3, qwen3_moe, olmo3"),
        ("qwen3", {"head_dim": ...}, "field 'head_dim' is missing"),
        ("qwen3", {"hidden_size": "64"}, "hidden_size is '64', wanted a positive int"),
        ("qwen3", {"rms_norm_eps": 0}, "rms_norm_eps is 0, wanted a positive float"),
        ("qwen3", {"rope_scaling": {"rope_type": "linear", "factor": 2}}, "rope_type is 'linear'.*supported: default, yarn"),
        ("qwen3", {"rope_scaling": YARN | {"mscale": 1}}, r"rope_type is 'yarn' \['mscale'\]"),
        ("qwen3", {"rope_scaling": {"rope_type": "yarn"}}, "yarn's factor is None, wanted a positive float"),
        ("qwen3", {"rope_theta": ...}, "rope_theta is missing"),
        ("qwen3", {"rope_theta": -1e6}, "rope_theta is -1000000.0, wanted a positive float"),
        ("qwen3", {"rope_theta": "1e6"}, "rope_theta is '1e6', wanted"),
        ("qwen3", {"rope_scaling": "yarn"}, "rope_scaling is 'yarn', wanted an object"),
        ("qwen3", {"rope_scaling": YARN | {"factor": 0}}, "yarn's factor is 0, wanted"),
        ("qwen3", {"rope_scaling": YARN | {"truncate": "false"}}, "yarn's truncate is 'false', wanted a bool"),
        ("qwen3", {"rope_scaling": YARN | {"beta_fast": 1, "beta_slow": 32}}, "yarn's beta_fast 1.0 is below its beta_slow 32.0"),
        ("qwen3", {"rope_scaling": YARN, "original_max_position_embeddings": 40960}, "original_max_position_embeddings is 40960 and"),
        ("qwen3", {"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false', wanted a bool"),
        ("qwen3", {"rms_norm_eps": float("inf")}, "rms_norm_eps is inf, wanted"),
        ("qwen3", {"model_type": [1]}, r"model_type is \[1\], wanted one of"),
        ("qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e6}}, "rope_theta is 1000000.0 and 5000000.0, wanted one"),
        ("qwen3", {"attention_bias": True}, "attention_bias is True, supported: False"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window is True"),
        ("qwen3", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config is"),
        ("qwen3", {"layer_types": ["linear_attention"] * 36}, r"layer_types is \['linear_attention'.*, wanted 36 entries of"),
        ("qwen3", {"layer_types": [None] * 36}, "layer_types is"),
        ("qwen3", {"num_key_value_heads": 5}, "32 heads of 128 over 5 key/value heads do not fit together"),
        ("olmo3", {"sliding_window": None}, "sliding_window is None, wanted a positive int"),
        ("olmo3", {"num_hidden_layers": 31}, "layer_types is .*, wanted 31 entries"),
        ("olmo3", {"rope_parameters": {"full_attention": YARN}, "rope_scaling": None}, "rope_parameters has no sliding_attention"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, r"mlp_only_layers is \[0\], supported: \[\]"),
        ("qwen3_moe", {"num_experts": ...}, "num_experts is missing"),
        ("qwen3_moe", {"num_local_experts": 64}, "num_experts is 128 and 64, wanted one value"),
        ("qwen3_moe", {"num_experts_per_tok": 256}, "num_experts_per_tok is 256 of 128 experts"),
        ("qwen3_moe", {"norm_topk_prob": None}, "norm_topk_prob is None, wanted a bool"),
    ],
)
def test_an_unsupported_config_is_refused(tmp_path, family, changes, message):
    raw = {k: v for k, v in (TYPES[family] | changes).items() if v is not ...}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=f"config.json: {message}"):
        load_config(tmp_path)


def change(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda t: t.pop("model.norm.weight"), "tensors missing: model.norm.weight; tensors unexpected: none"),
        (lambda t: t.update(extra=np.zeros(1, np.float32)), "tensors missing: none; tensors unexpected: extra"),
        (
            lambda t: t.update({"model.norm.weight": np.zeros(3, np.float32), "lm_head.weight": np.zeros((2, 2), np.float32)}),
            r"lm_head.weight has shape \[2, 2\], config.json wants \[40, 32\], model.norm.weight has shape \[3\], config.json wants \[32\]",
        ),
        (lambda t: t.update({"model.norm.weight": np.ones(32, np.int32)}), "model.norm.weight is I32, wanted one of F32, BF16, F16"),
        (
            lambda t: t.update({"model.norm.weight": np.full(32, np.nan, ml_dtypes.bfloat16)}),
            "model.norm.weight holds 32 values that are NaN",
        ),
    ],
)
def test_every_tensor_is_accounted_for(tmp_path, model, weights, mesh1, edit, message):
    change(write(tmp_path, model, weights), edit)
    with pytest.raises(UserError, match=message):
        hf.load_weights(tmp_path, model, mesh1)


def test_a_half_written_or_missing_file_is_refused(tmp_path, model, weights, mesh1):
    path = write(tmp_path, model, weights) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a complete safetensors file"):
        hf.load_weights(tmp_path, model, mesh1)
    path.unlink()
    with pytest.raises(UserError, match="has no model.safetensors"):
        hf.load_weights(tmp_path, model, mesh1)
    hf.save_weights(tmp_path, model, weights, shard_bytes=20_000)
    (tmp_path / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(UserError, match="has no model-00002-of-00004.safetensors"):
        hf.load_weights(tmp_path, model, mesh1)


def test_an_output_matrix_beside_a_tied_embedding_must_be_its_copy(tmp_path, model, weights, mesh1):
    tied = replace(model, tied=True)
    write(tmp_path, tied, weights.replace(unembedding=None))
    change(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    assert hf.load_weights(tmp_path, tied, mesh1).unembedding is None
    change(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    with pytest.raises(UserError, match="ties lm_head.weight to the embedding, but the file holds another one"):
        hf.load_weights(tmp_path, tied, mesh1)


def test_a_tensor_in_two_files_is_refused_and_new_weights_leave_no_old_ones(tmp_path, model, weights, mesh1):
    hf.save_weights(tmp_path, model, weights, shard_bytes=20_000)
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    save_file({"model.norm.weight": np.ones(32, np.float32)}, tmp_path / "model-00001-of-00004.safetensors")
    with pytest.raises(UserError, match="model.norm.weight is in model-00001-of-00004.safetensors and in model-00004"):
        hf.load_weights(tmp_path, model, mesh1)
    hf.save_weights(tmp_path, model, weights)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_settings_of_another_model_do_not_stay(tmp_path):
    for name, files in (("a", ["config.json", "chat_template.jinja"]), ("b", ["config.json"])):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text(name)
    for source in ("a", "b"):
        hf.copy_settings(tmp_path / source, tmp_path / "run")
    assert [(p.name, p.read_text()) for p in (tmp_path / "run").iterdir()] == [("config.json", "b")]
    hf.copy_settings(tmp_path / "run", tmp_path / "run")


def test_stop_tokens_come_from_the_generation_config(tmp_path, model, weights):
    write(tmp_path, model, weights)
    assert stop_tokens(tmp_path) == (2,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 2]}')
    assert stop_tokens(tmp_path) == (5, 2)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": []}')
    with pytest.raises(UserError, match=r"eos_token_id is \[\], wanted token ids"):
        stop_tokens(tmp_path)


def test_a_hub_name_is_its_snapshot_and_an_unknown_one_a_clear_error(tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    commit = "0" * 40
    folder = tmp_path / "models--org--tiny"
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hf.locate("org/tiny") == folder / "snapshots" / commit
    with pytest.raises(UserError, match="model org/other: no such folder, and no snapshot 'main' from the hub: "):
        hf.locate("org/other")
    assert hf.locate("runs/x/y") == hf.Path("runs/x/y")


MEASURE = """
import json, sys
import jax, jax.numpy as jnp
jax.config.update("jax_num_cpu_devices", 4)
from antisd_jax.model.hf import load_weights
from antisd_jax.model.settings import load_config
from antisd_jax.model.sharding import MeshConfig, make_mesh
mesh = make_mesh(MeshConfig(1, 2, 2))
peak = lambda: next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("VmHWM"))
jax.jit(lambda x: x + 1)(jnp.zeros(8)).block_until_ready()
before = peak()
weights = load_weights(sys.argv[1], load_config(sys.argv[1]), mesh, jnp.dtype(sys.argv[2]))
jax.block_until_ready(weights)
shards = sum(s.data.nbytes for w in jax.tree.leaves(weights) for s in w.addressable_shards)
print(json.dumps({"shards": shards, "above": peak() - before - shards}))
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_loading_two_gigabytes_takes_less_than_one_above_the_shards(tmp_path):
    """The peak of the process, in which the devices' memory is, too: a synthetic 2 GB bfloat16 folder on four devices."""
    raw = small(QWEN3_8B, hidden_size=2048, intermediate_size=6144, head_dim=128, num_attention_heads=16, num_key_value_heads=8)
    raw |= {"num_hidden_layers": 16, "vocab_size": 70_000}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    rng = np.random.default_rng(0)
    where, total, shapes = {}, 0, list(hf.tensor_shapes(parse(raw, "")).items())
    for i in range(0, len(shapes), 20):
        tensors = {n: rng.integers(0x3C00, 0x3D00, s, np.uint16).view(ml_dtypes.bfloat16) for n, s in shapes[i : i + 20]}
        save_file(tensors, tmp_path / f"model-{i:05d}.safetensors")
        where |= dict.fromkeys(tensors, f"model-{i:05d}.safetensors")
        total += sum(t.nbytes for t in tensors.values())
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert 1.9e9 < total < 2.3e9
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path), "float32"], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    print(f"{total / 2**30:.2f} GiB read as float32: shards {told['shards'] / 2**30:.2f} GiB, {told['above'] / 2**30:.2f} GiB above them")
    assert told["shards"] == pytest.approx(2 * total, rel=1e-3)
    assert told["above"] < 2**30
