"""Hugging Face folders: config.json and safetensors, in and out, every tensor accounted for."""

import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from antisd_jax.errors import UserError
from antisd_jax.model.decoder import ModelConfig, Param, Weights, declare
from antisd_jax.model.sharding import param_shardings

# Fields whose other values would change the numbers: each must be absent or one of these.
FIXED = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "use_sliding_window": (False,),
    "rope_scaling": (None,),
}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)


def read_json(path: Path) -> dict:
    """A JSON object from a file that must exist. Raises UserError naming the file."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"model folder {path.parent} has no {path.name}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as e:
        raise UserError(f"{path} cannot be read: {e}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, wanted a JSON object")
    return value


def load_config(folder: str | Path) -> ModelConfig:
    """config.json of a Qwen3 folder → ModelConfig; reads both spellings of the RoPE base.

    Raises UserError for another architecture, a missing field, or a value this decoder does not implement.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"model folder {folder} does not exist")
    raw = read_json(folder / "config.json")
    where = folder / "config.json"
    if raw.get("model_type") != "qwen3":
        raise UserError(f"{where}: model_type is {raw.get('model_type')!r}, wanted 'qwen3'")
    for name, allowed in FIXED.items():
        if name in raw and raw[name] not in allowed:
            raise UserError(f"{where}: {name} is {raw[name]!r}, supported: {allowed[0]!r}")
    rope = raw.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise UserError(f"{where}: rope_type is {rope['rope_type']!r}, supported: 'default'")
    base = raw.get("rope_theta", rope.get("rope_theta"))
    if base is None:
        raise UserError(f"{where}: neither rope_theta nor rope_parameters.rope_theta is given")

    def field(name):
        if name not in raw:
            raise UserError(f"{where}: field {name!r} is missing")
        return raw[name]

    return ModelConfig(
        vocab=field("vocab_size"),
        width=field("hidden_size"),
        layers=field("num_hidden_layers"),
        heads=field("num_attention_heads"),
        kv_heads=field("num_key_value_heads"),
        head_dim=field("head_dim"),
        feed_forward=field("intermediate_size"),
        rope_base=float(base),
        norm_eps=field("rms_norm_eps"),
        tied=raw.get("tie_word_embeddings", False),
    )


def stop_tokens(folder: str | Path) -> tuple[int, ...]:
    """End-of-sequence ids: generation_config.json's when present, else config.json's."""
    folder = Path(folder)
    ids = None
    if (folder / "generation_config.json").exists():
        ids = read_json(folder / "generation_config.json").get("eos_token_id")
    if ids is None:
        ids = read_json(folder / "config.json").get("eos_token_id")
    if ids is None:
        raise UserError(f"{folder}: neither generation_config.json nor config.json gives eos_token_id")
    return tuple(ids) if isinstance(ids, list) else (ids,)


def _weight_files(folder: Path) -> dict[str, Path]:
    """Tensor name → the safetensors file that holds it."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = {folder / name for name in read_json(index).get("weight_map", {}).values()}
    else:
        files = {folder / "model.safetensors"}
    found = {}
    for file in sorted(files):
        if not file.exists():
            raise UserError(f"model folder {folder} has no {file.name}")
        try:
            with safe_open(file, framework="np") as f:
                found |= {name: file for name in f.keys()}
        except (SafetensorError, OSError) as e:
            raise UserError(f"{file} is not a complete safetensors file: {e}") from None
    return found


def _names(param: Param) -> list[str]:
    """The Hugging Face tensors that make up one parameter, in layer order."""
    layers = range(param.shape[0]) if "{layer}" in param.hf else [0]
    return [param.hf.format(layer=i) for i in layers]


def _hf_shape(param: Param) -> tuple[int, ...]:
    """The shape of one such tensor in the file."""
    shape = param.shape[1:] if "{layer}" in param.hf else param.shape
    if not param.inputs:
        return shape
    return (math.prod(shape[param.inputs :]), math.prod(shape[: param.inputs]))


def _from_hf(param: Param, tensor: np.ndarray) -> np.ndarray:
    shape = param.shape[1:] if "{layer}" in param.hf else param.shape
    return (tensor.T if param.inputs else tensor).reshape(shape)


def _to_hf(param: Param, tensor: np.ndarray) -> np.ndarray:
    if not param.inputs:
        return tensor
    rows, columns = _hf_shape(param)
    return np.ascontiguousarray(tensor.reshape(columns, rows).T)


def load_weights(folder: str | Path, config: ModelConfig, mesh) -> Weights:
    """Safetensors → float32 weights on the mesh, one parameter at a time.

    Raises UserError naming missing, unexpected and mis-shaped tensors, and tensors that hold NaN or infinity.
    """
    folder = Path(folder)
    declared = declare(config)
    params = jax.tree.leaves(declared)
    files = _weight_files(folder)
    wanted = {name: _hf_shape(p) for p in params for name in _names(p)}
    extra = sorted(set(files) - set(wanted) - ({"lm_head.weight"} if config.tied else set()))
    missing = sorted(set(wanted) - set(files))
    if missing or extra:
        raise UserError(f"{folder}: tensors missing: {_few(missing)}; tensors unexpected: {_few(extra)}")

    def read(name):
        with safe_open(files[name], framework="np") as f:
            tensor = f.get_tensor(name)
        if tensor.shape != wanted[name]:
            raise UserError(f"{folder}: {name} has shape {list(tensor.shape)}, config.json wants {list(wanted[name])}")
        tensor = tensor.astype(np.float32)
        if not np.isfinite(tensor).all():
            raise UserError(f"{folder}: {name} holds {int((~np.isfinite(tensor)).sum())} values that are NaN or infinite")
        return tensor

    def one(param: Param, sharding):
        tensors = [_from_hf(param, read(name)) for name in _names(param)]
        return jax.device_put(np.stack(tensors) if "{layer}" in param.hf else tensors[0], sharding)

    return jax.tree.map(one, declared, param_shardings(mesh, declared))


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") if names else "none"


def save_folder(folder: str | Path, config: ModelConfig, weights: Weights, source: str | Path | None = None) -> None:
    """Weights → model.safetensors (float32), beside a config.json; tokenizer files are copied from `source`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for param, array in zip(jax.tree.leaves(declare(config)), jax.tree.leaves(weights)):
        host = np.asarray(array)
        for i, name in enumerate(_names(param)):
            tensors[name] = _to_hf(param, host[i] if "{layer}" in param.hf else host)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if source is None:
        return
    for name in ("config.json", *TOKENIZER_FILES):
        if (Path(source) / name).exists():
            shutil.copyfile(Path(source) / name, folder / name)


def config_json(c: ModelConfig, *, eos: int, bos: int | None, positions: int) -> dict:
    """A config.json for a new Qwen3 folder."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": c.vocab,
        "hidden_size": c.width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.feed_forward,
        "rope_theta": c.rope_base,
        "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": positions,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "torch_dtype": "float32",
    }


def abstract(config: ModelConfig, mesh, dtype=jnp.float32) -> Weights:
    """Shapes, dtype and shardings of the weights, without any data."""
    declared = declare(config)
    return jax.tree.map(lambda p, s: jax.ShapeDtypeStruct(p.shape, dtype, sharding=s), declared, param_shardings(mesh, declared))
