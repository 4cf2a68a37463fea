import json

import jax
import numpy as np
import pytest
from conftest import sharpened
from safetensors.numpy import load_file, save_file

from antisd_jax.errors import UserError
from antisd_jax.model import hf
from antisd_jax.model.decoder import ModelConfig, count, declare, forward, init
from antisd_jax.model.sharding import MeshConfig, make_mesh, param_shardings, spec

TOKENS = np.random.default_rng(0).integers(0, 40, (3, 150))


def write(folder, model, weights, **changes):
    hf.save_folder(folder, model, weights)
    settings = hf.config_json(model, eos=2, bos=None, positions=512) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if v is not ...}))
    return folder


def logits(model, weights, tokens=TOKENS):
    return np.asarray(forward(model, weights, tokens) @ weights.output.T)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("base", [1e4, 5e6])
def test_logits_equal_those_of_transformers(tmp_path, mesh1, tied, base):
    torch = pytest.importorskip("torch", reason="comparison with torch needs the 'parity' extra")
    from transformers import AutoModelForCausalLM

    model = ModelConfig(40, 32, 3, 4, 2, 16, 48, base, 1e-6, tied)
    weights = sharpened(init(model, 3))
    theirs = AutoModelForCausalLM.from_pretrained(write(tmp_path, model, weights), dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(TOKENS)).logits.numpy()
    assert np.abs(expected).max() > 1
    loaded = hf.load_weights(tmp_path, hf.load_config(tmp_path), mesh1)
    assert np.abs(logits(model, loaded) - expected).max() < 1e-4


def test_the_rope_base_matters_at_this_length(model, weights):
    other = ModelConfig(**{**model.__dict__, "rope_base": 5e6})
    assert np.abs(logits(model, weights) - logits(other, weights)).max() > 1e-2


def test_padding_to_the_right_changes_nothing_before_it(model, weights):
    changed = TOKENS.copy()
    changed[:, 100:] = 0
    assert (logits(model, weights)[:, :100] == logits(model, weights, changed)[:, :100]).all()


def test_parameter_count_of_qwen3_8b_from_shapes_alone():
    assert count(ModelConfig(151936, 4096, 36, 32, 8, 128, 12288, 1e6, 1e-6, False)) == 8_190_735_360


def test_round_trip_through_a_folder_is_bit_identical(tmp_path, model, weights, mesh1):
    loaded = hf.load_weights(write(tmp_path, model, weights), model, mesh1)
    assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(jax.tree.leaves(weights), jax.tree.leaves(loaded)))


def test_both_spellings_of_the_rope_base_are_read(tmp_path, model, weights):
    write(tmp_path, model, weights, rope_theta=..., rope_parameters={"rope_type": "default", "rope_theta": 5e6})
    assert hf.load_config(tmp_path).rope_base == 5e6


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "llama"}, "model_type is 'llama', wanted 'qwen3'"),
        ({"head_dim": ...}, "field 'head_dim' is missing"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling is"),
        ({"rope_theta": ...}, "neither rope_theta nor"),
        ({"attention_bias": True}, "attention_bias is True, supported: False"),
    ],
)
def test_an_unsupported_config_is_refused(tmp_path, model, weights, changes, message):
    with pytest.raises(UserError, match=message):
        hf.load_config(write(tmp_path, model, weights, **changes))


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
            lambda t: t.update({"model.norm.weight": np.zeros(3, np.float32)}),
            r"model.norm.weight has shape \[3\], config.json wants \[32\]",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.full(32, np.nan, np.float32)}),
            "model.norm.weight holds 32 values that are NaN",
        ),
    ],
)
def test_every_tensor_is_accounted_for(tmp_path, model, weights, mesh1, edit, message):
    change(write(tmp_path, model, weights), edit)
    with pytest.raises(UserError, match=message):
        hf.load_weights(tmp_path, model, mesh1)


def test_a_half_written_file_is_refused(tmp_path, model, weights, mesh1):
    path = write(tmp_path, model, weights) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a complete safetensors file"):
        hf.load_weights(tmp_path, model, mesh1)
    path.unlink()
    with pytest.raises(UserError, match="has no model.safetensors"):
        hf.load_weights(tmp_path, model, mesh1)


def test_stop_tokens_come_from_the_generation_config(tmp_path, model, weights):
    write(tmp_path, model, weights)
    assert hf.stop_tokens(tmp_path) == (2,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 2]}')
    assert hf.stop_tokens(tmp_path) == (5, 2)


@pytest.mark.parametrize("mesh", [MeshConfig(8), MeshConfig(2, 4), MeshConfig(2, 2, 2), MeshConfig(1, 4, 2)])
def test_the_same_logits_on_every_mesh(model, weights, mesh):
    mesh = make_mesh(mesh)
    placed = jax.device_put(weights, param_shardings(mesh, declare(model)))
    tokens = np.resize(TOKENS, (8, 150))
    got = jax.jit(lambda w, t: forward(model, w, t) @ w.output.T)(placed, tokens)
    assert np.abs(np.asarray(got) - logits(model, weights, tokens)).max() < 1e-4


def test_two_axes_of_one_array_on_one_mesh_axis_are_an_error():
    with pytest.raises(ValueError, match="put one mesh axis to two uses"):
        spec(("heads", "feed_forward"))


def test_a_mesh_that_does_not_fit_is_refused(model):
    with pytest.raises(UserError, match="does not fit 8 devices"):
        make_mesh(MeshConfig(3))
    with pytest.raises(UserError, match="k_proj.weight has 2 kv_heads, not divisible by tensor = 4"):
        param_shardings(make_mesh(MeshConfig(1, 2, 4)), declare(model))
