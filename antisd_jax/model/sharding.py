"""Where arrays live: one table from logical axis names to mesh axes, and the few calls that place them.

Another topology is another mesh or another table, nothing else.
"""

import math
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from antisd_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")
RULES = {
    "rows": ("data", "fsdp"),
    "layers": None,
    "vocab": "tensor",
    "width": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head": None,
    "feed_forward": "tensor",
}


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; data = -1 takes what the others leave."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def make_mesh(config: MeshConfig, devices=None) -> Mesh:
    """The device mesh. Raises UserError when the axes do not multiply to the number of devices."""
    devices = jax.devices() if devices is None else devices
    rest = config.fsdp * config.tensor
    data = len(devices) // rest if config.data == -1 else config.data
    if data * rest != len(devices):
        raise UserError(f"mesh: data {config.data} × fsdp {config.fsdp} × tensor {config.tensor} does not fit {len(devices)} devices")
    return Mesh(np.asarray(devices).reshape(data, config.fsdp, config.tensor), MESH_AXES)


def spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """Logical axes → PartitionSpec. Raises ValueError when two axes of one array land on one mesh axis."""
    placed = [RULES[a] if a else None for a in axes]
    flat = [m for p in placed if p for m in ((p,) if isinstance(p, str) else p)]
    if len(flat) != len(set(flat)):
        raise ValueError(f"axes {axes} put one mesh axis to two uses: {placed}")
    return PartitionSpec(*placed)


def named(mesh: Mesh, *axes: str | None) -> NamedSharding:
    return NamedSharding(mesh, spec(axes))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def param_shardings(mesh: Mesh, declared):
    """A tree of Param → a tree of NamedSharding. Raises UserError for a dimension its mesh axis does not divide."""

    def one(param):
        sharding = named(mesh, *param.axes)
        for size, axis, place in zip(param.shape, param.axes, sharding.spec):
            if place and size % mesh.shape[place]:
                raise UserError(f"mesh: {param.hf} has {size} {axis}, not divisible by {place} = {mesh.shape[place]}")
        return sharding

    return jax.tree.map(one, declared)


def rows_per_step(mesh: Mesh) -> int:
    """Number of ways the row dimension of a batch is split."""
    return math.prod(mesh.shape[a] for a in RULES["rows"])


def place_rows(mesh: Mesh, tree, axis: int):
    """Host arrays → device arrays split along their row dimension, which stands at `axis`."""
    return jax.tree.map(lambda x: jax.device_put(x, named(mesh, *([None] * axis), "rows")), tree)
