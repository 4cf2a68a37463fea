"""Safetensors in and out of Hugging Face folders, one tensor at a time, every tensor accounted for."""

import itertools
import json
import math
import re
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from antisd_jax.errors import UserError
from antisd_jax.model.parameters import ModelConfig, Param, Weights, declare
from antisd_jax.model.settings import read_json
from antisd_jax.model.sharding import param_shardings

DTYPES = ("F32", "BF16", "F16")
INDEX = "model.safetensors.index.json"
SETTINGS = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def locate(path: str, revision: str = "main", weights: bool = True) -> Path:
    """A folder as it is; a hub name such as Qwen/Qwen3-8B as the folder of its snapshot, downloaded when it is not there yet.

    Without `weights`, its small files alone.
    Raises UserError when the hub has no such model, or cannot be reached and nothing is cached.
    """
    if Path(path).is_dir() or not re.fullmatch(r"[\w.-]+/[\w.-]+", path) or path.startswith("."):
        return Path(path)
    from huggingface_hub import snapshot_download

    try:
        wanted = ["*.json", "*.jinja", "merges.txt", *(["*.safetensors"] if weights else [])]
        return Path(snapshot_download(path, revision=revision, allow_patterns=wanted))
    except Exception as e:  # network, authorisation, names: whatever the library raises, the user can mend
        reason = str(e).strip().splitlines()
        raise UserError(
            f"model {path}: no such folder, and no snapshot {revision!r} from the hub: {reason[0] if reason else type(e).__name__}"
        ) from None


def tensor_shapes(c: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of such a model's folder, with its shape there."""
    params = jax.tree.leaves(declare(c))
    return {name: _stored_shape(p) for p in params for name in names(p)}


def names(param: Param, layer: int | None = None) -> list[str]:
    """The tensors that make up one parameter, or one layer of it, in the order of its leading dimensions."""
    every = (re.sub(r"{\w+}", "{}", param.hf).format(*index) for index in np.ndindex(param.shape[: param.lead]))
    if layer is None:
        return list(every)
    each = math.prod(param.shape[1 : param.lead])
    return list(itertools.islice(every, layer * each, (layer + 1) * each))


def _stored_shape(param: Param) -> tuple[int, ...]:
    """The shape of one such tensor in the file."""
    shape = param.shape[param.lead :]
    if param.inputs is None:
        return shape
    split = (math.prod(shape[param.inputs :]), math.prod(shape[: param.inputs]))
    return split if param.inputs else split[:1]


def from_stored(param: Param, tensor: np.ndarray) -> np.ndarray:
    """A tensor as it stands in a file → our layout."""
    return (tensor.T if param.inputs else tensor).reshape(param.shape[param.lead :])


def to_stored(param: Param, tensor: np.ndarray) -> np.ndarray:
    """The reverse."""
    stored = _stored_shape(param)
    return np.ascontiguousarray(tensor.reshape(stored[::-1]).T) if param.inputs else tensor.reshape(stored)


def _open(file: Path):
    try:
        return safe_open(file, framework="np")
    except FileNotFoundError:
        raise UserError(f"model folder {file.parent} has no {file.name}") from None
    except (SafetensorError, OSError) as e:
        raise UserError(f"{file} is not a complete safetensors file: {e}") from None


def find_tensors(folder: Path, c: ModelConfig) -> dict[str, Path]:
    """Tensor name → the file that holds it.

    Raises UserError naming missing, unexpected and mis-shaped tensors, and those of a dtype that is not read.
    """
    index = folder / INDEX
    files = {"model.safetensors"}
    if index.exists():
        where = read_json(index).get("weight_map")
        if not isinstance(where, dict) or not all(isinstance(f, str) for f in where.values()):
            raise UserError(f"{index} has no weight_map from tensors to files")
        files = set(where.values())
    wanted = tensor_shapes(c)
    found, problems = {}, []
    for file in sorted(folder / name for name in files):
        with _open(file) as f:
            for name in f.keys():
                if name in found:
                    problems.append(f"{name} is in {found[name].name} and in {file.name}")
                found[name] = file
                part = f.get_slice(name)
                if name in wanted and tuple(part.get_shape()) != wanted[name]:
                    problems.append(f"{name} has shape {list(part.get_shape())}, config.json wants {list(wanted[name])}")
                if name in wanted and part.get_dtype() not in DTYPES:
                    problems.append(f"{name} is {part.get_dtype()}, wanted one of {', '.join(DTYPES)}")
    extra = sorted(set(found) - set(wanted) - ({"lm_head.weight"} if c.tied else set()))
    missing = sorted(set(wanted) - set(found))
    if missing or extra:
        problems.insert(0, f"tensors missing: {_few(missing)}; tensors unexpected: {_few(extra)}")
    if problems:
        raise UserError(f"{folder}: {_few(problems)}")
    if c.tied and "lm_head.weight" in found:
        _check_tied(folder, found)
    return found


def _check_tied(folder: Path, files: dict[str, Path]) -> None:
    """An output matrix beside a tied embedding must be its copy."""
    with _open(files["lm_head.weight"]) as f, _open(files["model.embed_tokens.weight"]) as g:
        a, b = f.get_slice("lm_head.weight"), g.get_slice("model.embed_tokens.weight")
        rows = b.get_shape()[0]
        blocks = [slice(i, min(i + 8192, rows)) for i in range(0, rows, 8192)]
        if a.get_shape() != b.get_shape() or any((a[s] != b[s]).any() for s in blocks):
            raise UserError(f"{folder}: config.json ties lm_head.weight to the embedding, but the file holds another one")


def _few(items: list[str]) -> str:
    return ", ".join(items[:4]) + (f" and {len(items) - 4} more" if len(items) > 4 else "") if items else "none"


def load_weights(folder: str | Path, c: ModelConfig, mesh, dtype=jnp.float32) -> Weights:
    """Safetensors → weights of `dtype` on the mesh, one layer's tensor at a time straight to the devices' shards.

    Of each tensor only the parts that this process's devices hold are read, in the file's dtype; the conversion happens on
    the device, and from bfloat16 and float16 to float32 it is exact. Raises UserError as `find_tensors`, and for NaN or
    infinity in a tensor.
    """
    folder = Path(folder)
    files = find_tensors(folder, c)

    def one(param: Param, sharding):
        stacked = param.axes[0] == "layers"
        place = NamedSharding(mesh, PartitionSpec(*sharding.spec[1:])) if stacked else sharding
        shape = param.shape[1:] if stacked else param.shape
        if not stacked:
            return jax.jit(lambda x: x.astype(dtype), out_shardings=sharding)(_to_devices(param, None, shape, place, files))
        whole = jax.jit(partial(jnp.zeros, param.shape, dtype), out_shardings=sharding)()
        for i in range(param.shape[0]):
            whole = _set_layer(whole, _to_devices(param, i, shape, place, files), i)
        return whole

    return jax.tree.map(one, declare(c), param_shardings(mesh, declare(c)))


@partial(jax.jit, donate_argnums=0)
def _set_layer(whole, layer, i):
    return jax.lax.dynamic_update_index_in_dim(whole, layer.astype(whole.dtype), i, 0)


def _to_devices(param: Param, layer: int | None, shape, sharding, files) -> jax.Array:
    """One layer of a parameter (all of its experts), read from the files shard by shard."""
    tensors, read = names(param, layer), {}
    experts = len(shape) > len(param.shape) - param.lead

    def shard(index):
        key = str(index)
        if key not in read and experts:
            read[key] = np.stack([_read(param, name, index[1:], files[name]) for name in tensors[index[0]]])
        elif key not in read:
            read[key] = _read(param, tensors[0], index, files[tensors[0]])
        return read[key]

    return jax.make_array_from_callback(shape, sharding, shard)


def _read(param: Param, name: str, index, file: Path) -> np.ndarray:
    """The part of a tensor that `index` (in our layout) asks for."""
    shape = param.shape[param.lead :]
    with _open(file) as f:
        stored = f.get_slice(name)
        if param.inputs is None:
            tensor = stored[index]
        elif param.inputs == 0:
            tensor = stored[_flat(shape, index)]
        else:
            rows, columns = _flat(shape[param.inputs :], index[param.inputs :]), _flat(shape[: param.inputs], index[: param.inputs])
            tensor = stored[rows, columns].T
    if not np.isfinite(tensor).all():
        raise UserError(f"{file.parent}: {name} holds {int((~np.isfinite(tensor)).sum())} values that are NaN or infinite")
    return np.ascontiguousarray(tensor.reshape([len(range(*s.indices(n))) for s, n in zip(index, shape)]))


def _flat(shape, index) -> slice:
    """The stretch of the flattened dimensions that an index covers, of which only the first may be cut."""
    start, stop, _ = index[0].indices(shape[0])
    inner = math.prod(shape[1:])
    assert all(s.indices(n) == (0, n, 1) for s, n in zip(index[1:], shape[1:])), (shape, index)
    return slice(start * inner, stop * inner)


def copy_settings(source: str | Path, target: str | Path) -> None:
    """config.json, tokenizer and generation settings of `source`, as they are, and no other model's; not the weights."""
    source, target = Path(source), Path(target)
    target.mkdir(parents=True, exist_ok=True)
    if source.resolve() == target.resolve():
        return
    for name in SETTINGS:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
        else:
            (target / name).unlink(missing_ok=True)


def save_weights(folder: str | Path, c: ModelConfig, weights: Weights, dtype=np.float32, shard_bytes: int = 2 * 2**30) -> None:
    """Weights → safetensors of `dtype`, in files of about `shard_bytes`, layer after layer; an index beside several of them.

    They take the place of whatever weights the folder held.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shapes, size = tensor_shapes(c), np.dtype(dtype).itemsize
    pairs = list(zip(jax.tree.leaves(declare(c)), jax.tree.leaves(weights)))
    once = [(p, w, None) for p, w in pairs if p.axes[0] != "layers"]
    pieces = [(p, w, i) for i in range(c.layers) for p, w in pairs if p.axes[0] == "layers"] + once
    sizes = [sum(math.prod(shapes[n]) * size for n in names(p, i)) for p, _, i in pieces]
    before = np.cumsum([0, *sizes[:-1]])
    files = before // shard_bytes
    count = len(set(files))
    where, tensors = {}, {}
    for k, (param, array, i) in enumerate(pieces):
        host = np.asarray(array if i is None else array[i]).reshape(-1, *param.shape[param.lead :])
        tensors |= {name: to_stored(param, part).astype(dtype) for name, part in zip(names(param, i), host, strict=True)}
        if k + 1 == len(pieces) or files[k + 1] != files[k]:
            number = len(set(files[: k + 1]))
            file = "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            save_file(tensors, folder / file, metadata={"format": "pt"})
            (folder / file).chmod(0o644)  # the library makes it readable by its owner alone
            where |= dict.fromkeys(tensors, file)
            tensors = {}
    if count > 1:
        index = {"metadata": {"total_size": int(sum(sizes))}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    for file in folder.glob("model*.safetensors*"):
        if file.name not in where.values() and (count == 1 or file.name != INDEX):
            file.unlink()
