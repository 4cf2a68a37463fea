"""Where arrays live: one table from logical axis names to mesh axes, and the few calls that place them.

Another topology is another mesh or another table, nothing else. The current mesh (`use_mesh`) is how the decoder knows
where it runs; without one it is a plain function of arrays on one device.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from antisd_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "expert", "tensor")
RULES = {
    "rows": ("data", "fsdp", "expert"),
    "sequence": "tensor",  # of hidden states between the layers, where it divides
    "layers": None,
    "vocab": "tensor",
    "width": ("fsdp", "expert"),
    "heads": "tensor",
    "kv_heads": "tensor",
    "head": None,
    "feed_forward": "tensor",
    "experts": "expert",
    "expert_width": "fsdp",
    "routes": None,
}
# In a product every device of a row group holds its weights whole but for the tensor axis: a layer's are gathered for it while training;
# the decoder keeps such a copy, since gathering at each token would cost more than the token. Experts stay apart; tokens come to them.
WHOLE_RULES = RULES | {"width": None}


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; data = -1 takes what the others leave.

    fsdp splits weights and rows, tensor splits heads, feed-forward and vocabulary, expert splits the experts of a mixture
    (and rows: every device works on its own rows outside the experts).
    """

    data: int = -1  # devices among which rows alone are split; -1 takes what the others leave [devices; ours]
    fsdp: int = 1  # devices that split rows, and weights and moments by width [devices; ours]
    tensor: int = 1  # devices that split heads, feed-forward and vocabulary [devices; ours]
    expert: int = 1  # devices that split the experts of a mixture, and rows [devices; ours]
    topology: str = ""  # the hardware that `antisd plan` compiles for [–; –]

    def __post_init__(self):
        for name in ("fsdp", "tensor", "expert"):
            if getattr(self, name) < 1:
                raise UserError(f"mesh.{name}: got {getattr(self, name)}, wanted at least 1")
        if self.data < 1 and self.data != -1:
            raise UserError(f"mesh.data: got {self.data}, wanted at least 1, or -1 for what the others leave")


def make_mesh(config: MeshConfig, devices=None) -> Mesh:
    """The device mesh. Raises UserError when the axes do not multiply to the number of devices."""
    devices = jax.devices() if devices is None else devices
    rest = config.fsdp * config.expert * config.tensor
    data = len(devices) // rest if config.data == -1 else config.data
    if data * rest != len(devices):
        axes = " × ".join(f"{a} {getattr(config, a)}" for a in ("data", "fsdp", "tensor", "expert"))
        raise UserError(f"mesh: {axes} does not fit {len(devices)} devices")
    shape = (data, config.fsdp, config.expert, config.tensor)
    return Mesh(np.asarray(devices).reshape(shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def keep_programs(mesh: Mesh) -> None:
    """Keep compiled programs between runs, in JAX_COMPILATION_CACHE_DIR or ~/.cache/antisd_jax.

    Not by default on a CPU: there they are quick to make, and bound to the processor that made them.
    """
    if jax.config.jax_compilation_cache_dir is None and mesh.devices.flat[0].platform != "cpu":
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "antisd_jax"))


def use_mesh(mesh: Mesh):
    """A context in which `mesh` is the current mesh."""
    return jax.set_mesh(mesh)


def current_mesh():
    """The current mesh, as seen while tracing, or None."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


def platform() -> str:
    """cpu, gpu or tpu: of the current mesh, which may be another machine's, else of this process."""
    mesh = current_mesh()
    return mesh.abstract_device.platform if mesh and mesh.abstract_device else jax.default_backend()


def spec(axes: tuple[str | None, ...], rules=RULES) -> PartitionSpec:
    """Logical axes → PartitionSpec. Raises ValueError when two axes of one array land on one mesh axis."""
    placed = [rules[a] if a else None for a in axes]
    flat = [m for p in placed for m in _mesh_axes(p)]
    if len(flat) != len(set(flat)):
        raise ValueError(f"axes {axes} put one mesh axis to two uses: {placed}")
    return PartitionSpec(*placed)


def _mesh_axes(place) -> tuple[str, ...]:
    return (place,) if isinstance(place, str) else place or ()


def named(mesh: Mesh, *axes: str | None) -> NamedSharding:
    return NamedSharding(mesh, spec(axes))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def in_memory(sharding, host: bool):
    """The same devices' share, in the memory of the device or of its host."""
    return sharding.with_memory_kind("pinned_host" if host else "device")


def constrain(x, *axes: str | None, rules=RULES):
    """x, kept on the current mesh along its logical axes."""
    return x if current_mesh() is None else jax.lax.with_sharding_constraint(x, spec(axes, rules))


def on_shards(f, inputs: tuple, output):
    """f run on each device's own shards of the current mesh: `inputs` and `output` are logical axes, one tuple an array.

    Without a mesh it is f itself. Kernels that XLA cannot split, and collectives written by hand, live in such functions.
    """
    if current_mesh() is None:
        return f
    return jax.shard_map(f, in_specs=tuple(map(spec, inputs)), out_specs=spec(output), check_vma=False)


def param_shardings(mesh: Mesh, declared):
    """A tree of Param → a tree of NamedSharding. Raises UserError for a dimension its mesh axes do not divide."""

    def one(param):
        sharding = named(mesh, *param.axes)
        for size, axis, place in zip(param.shape, param.axes, sharding.spec):
            ways = math.prod(mesh.shape[m] for m in _mesh_axes(place))
            if size % ways:
                raise UserError(f"mesh: {param.hf} has {size} {axis}, not divisible by {' × '.join(_mesh_axes(place))} = {ways}")
        return sharding

    return jax.tree.map(one, declared)


def rows_per_step(mesh: Mesh | None) -> int:
    """Number of ways the row dimension of a batch is split; 1 without a mesh."""
    return 1 if mesh is None else math.prod(mesh.shape[a] for a in RULES["rows"])


def place_rows(mesh: Mesh, tree):
    """Host arrays [B …], the same in every process → device arrays split along their rows."""

    def one(x):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, named(mesh, "rows"), lambda part: x[part])

    return jax.tree.map(one, tree)


@jax.jit
def everywhere(tree):
    """Arrays whole on every device, so that every process can read them."""
    return jax.tree.map(lambda x: constrain(x, *[None] * x.ndim), tree)


def one_by_one(tree):
    """The same arrays, on a CPU after they are there: independent programs with collectives that are in flight together have deadlocked its
    virtual devices, whose threads are few. Elsewhere devices keep the order in which programs were started."""
    return jax.block_until_ready(tree) if jax.default_backend() == "cpu" else tree
