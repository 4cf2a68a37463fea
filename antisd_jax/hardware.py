"""Hardware that is not here: published figures of chips, and devices to compile for.

A topology is the name of a chip and how many there are: TPUs in a shape that libtpu knows (v5e:4x4, v5p:4x4x4, tpu7x:2x2x1; pip install
"antisd-jax[tpu]"), GPUs of one host or of several (h100:8, h200:4x8; pip install "antisd-jax[cuda]"), or cpu:N for N devices
of this machine.
"""

import re
from dataclasses import dataclass

import jax

from antisd_jax.errors import UserError


@dataclass(frozen=True)
class Chip:
    """Published figures of a device: memory in bytes, FLOP/s in bfloat16, bytes a second from memory."""

    memory: float
    flops: float
    bandwidth: float


@dataclass(frozen=True)
class Gpu(Chip):
    """What XLA wants to know besides: bytes of level-2 cache, multiprocessors, their clock in GHz and bytes of shared memory, and of the
    latter what a block may ask for; compute capability."""

    cache: int
    cores: int
    clock: float
    shared: int
    block: int
    capability: int
    kind: str  # as the driver calls it


HOPPER = dict(flops=989e12, cores=132, clock=1.98, shared=233472, block=232448, capability=9)
CHIPS = {
    "v5e": Chip(16e9, 197e12, 819e9),
    "v5p": Chip(95e9, 459e12, 2765e9),
    "v6e": Chip(32e9, 918e12, 1640e9),
    "tpu7x": Chip(96e9, 1153e12, 3690e9),  # a device is half a chip
    "a100": Gpu(
        80e9, 312e12, 2039e9, cache=40 << 20, cores=108, clock=1.41, shared=167936, block=166912, capability=8, kind="NVIDIA A100-SXM4-80GB"
    ),
    "h100": Gpu(80e9, bandwidth=3350e9, cache=50 << 20, kind="NVIDIA H100 80GB HBM3", **HOPPER),
    "h200": Gpu(141e9, bandwidth=4800e9, cache=60 << 20, kind="NVIDIA H200", **HOPPER),
}


def topology_devices(topology: str):
    """Raises UserError for a name that nobody knows, and where its compiler is not installed."""
    kind, _, shape = topology.partition(":")
    if kind == "cpu" and shape.isdigit():
        if len(jax.devices()) < int(shape):
            raise UserError(f"topology: {topology}, but there are {len(jax.devices())} devices; set JAX_NUM_CPU_DEVICES={shape}")
        return jax.devices()[: int(shape)]
    chip = CHIPS.get(kind)
    if chip is None or (isinstance(chip, Gpu) and not re.fullmatch(r"([1-9]\d*x)?[1-9]\d*", shape)):
        names = ", ".join(CHIPS)
        raise UserError(f"topology: got {topology!r}, wanted cpu:N or one of {names} with its shape, as v5p:4x4x4 or h100:8")
    return gpus(topology, chip, shape) if isinstance(chip, Gpu) else tpus(topology)


def tpus(topology: str):
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(topology, platform="tpu").devices
    except Exception as e:
        reason = str(e).strip().splitlines()[0]
        hint = "" if "libtpu" not in reason.lower() else '; libtpu is needed: pip install "antisd-jax[tpu]"'
        raise UserError(f"topology {topology}: {reason}{hint}") from None


def gpus(topology: str, chip: Gpu, shape: str):
    """shape: devices of one host, or hosts x devices of each."""
    from jax.experimental import topologies

    try:
        shape = f"1x{shape}" if "x" in shape else f"1x1x{shape}"
        return topologies.get_topology_desc(platform="cuda", topology=shape, target_config=target(chip)).devices
    except NotImplementedError as e:
        raise UserError(f'topology {topology}: {e}; CUDA libraries of JAX are needed: pip install "antisd-jax[cuda]"') from None


def target(chip: Gpu) -> str:
    """XLA's description of a GPU (GpuTargetConfigProto, as text)."""
    device = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "threads_per_core_limit": 2048,
        "shared_memory_per_block": 49152,
        "shared_memory_per_block_optin": chip.block,
        "shared_memory_per_core": chip.shared,
        "core_count": chip.cores,
        "fpus_per_core": 128 if chip.capability >= 9 else 64,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
        "memory_bandwidth": int(chip.bandwidth),
        "l2_cache_size": chip.cache,
        "clock_rate_ghz": chip.clock,
        "device_memory_size": int(chip.memory),
    }
    described = " ".join(f"{key}: {value}" for key, value in device.items())
    versions = "dnn_version_info { major: 9 minor: 20 } runtime_version { major: 13 minor: 0 }"
    capability = f"cuda_compute_capability {{ major: {chip.capability} }}"
    return f'gpu_device_info {{ {described} {capability} }} platform_name: "CUDA" {versions} device_description_str: "{chip.kind}"'
