"""`antisd bench rollout`: how fast the sampler runs a configuration on this machine, with random weights, and how fast it could.

`antisd bench rollout [FILE.yaml …] [--rounds=3] [--median=0] [--key=value …]`
The keys are those of training. Prompts are random and lengths.prompt long; responses are lengths.response long, or log-normal with
the given median. JSON lines come out: the machine, each round, and the medians. The bound is the time that the device needs to read
every weight once a step (of a mixture, all experts) and each sample's keys and values once a token, or for their products,
whichever is longer.
"""

import json
import statistics
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from antisd_jax import config as configuration
from antisd_jax.arrays import named_key
from antisd_jax.errors import UserError
from antisd_jax.model.parameters import ModelConfig, count, declare, init, multiplied
from antisd_jax.model.settings import load_config
from antisd_jax.model.sharding import keep_programs, make_mesh, param_shardings, rows_per_step, use_mesh
from antisd_jax.rollout.books import Tally
from antisd_jax.rollout.cache import bands
from antisd_jax.rollout.engine import generate
from antisd_jax.score import exact_products
from antisd_jax.steps import model_folder


@dataclass(frozen=True)
class BenchConfig(configuration.Config):
    rounds: int = 3
    median: int = 0  # of the response lengths; 0: all of them lengths.response

    def __post_init__(self):
        if self.rounds < 1:
            raise UserError(f"rounds: got {self.rounds}, wanted at least 1")
        if not 0 <= self.median <= self.lengths.response:
            raise UserError(f"median: got {self.median}, wanted 0 … lengths.response = {self.lengths.response}")


def bench_rollout(config: BenchConfig) -> None:
    """Print the JSON lines. One more round comes first, which compiles."""
    c = load_config(model_folder(config.model.path, config.model.revision, weights=False))
    mesh, dtype = make_mesh(config.mesh), config.model.dtype
    keep_programs(mesh)
    rng = np.random.default_rng(config.seed)
    p, g, t, r = config.problems, config.samples, config.lengths.prompt, config.lengths.response
    limits = np.full((p, g), r)
    if config.median:
        limits = np.clip(np.exp(rng.normal(np.log(config.median), 1.0, (p, g))), 1, r).astype(int)
    prompts = rng.integers(0, c.vocab, (p, t))
    with use_mesh(mesh), exact_products(dtype):
        rates = machine(dtype)
        device = mesh.devices.flat[0]
        tell(
            devices=mesh.size,
            kind=device.device_kind,
            dtype=dtype,
            parameters=count(c),
            **{f"g{k}": round(v / 1e9, 1) for k, v in rates.items()},
        )
        weights = random_weights(c, config.seed, mesh)
        rows = []
        for n in range(config.rounds + 1):
            began = time.monotonic()
            key, ids, samples = named_key(config.seed, n, "sample"), np.arange(p), np.tile(np.arange(g), (p, 1))
            lengths = np.full(p, t)
            how = dict(c=c, responses=r, sampling=config.sampling, stop=(), dtype=dtype, slots=config.rollout.slots, limits=limits)
            _, tally = generate(weights, prompts, lengths, key, ids, samples, **how)
            seconds = time.monotonic() - began
            if n:
                slots = -(-(config.rollout.slots or p * g) // rows_per_step(mesh)) * rows_per_step(mesh)
                rows.append(measured(tally, seconds, least_seconds(c, t, limits, slots, tally, rates, mesh, dtype)))
                tell(round=n, **rows[-1])
            else:
                tell(round="first, compiles", seconds=round(seconds, 2))
    tell(median_of=config.rounds, **{k: round(statistics.median(row[k] for row in rows), 6) for k in rows[0]})


def tell(**values) -> None:
    print(json.dumps(values), flush=True)


def random_weights(c: ModelConfig, seed: int, mesh):
    """Float32, as in training; made in place, split as the mesh says."""
    return jax.jit(lambda: init(c, seed), out_shardings=param_shardings(mesh, declare(c)))()


def machine(dtype: str) -> dict[str, float]:
    """A device's rates, measured: bytes a second that products of a large matrix and a vector read, and FLOP/s of large products."""
    wide = 512
    matrix = jnp.ones((SIDE, SIDE), dtype)
    seconds = {columns: best_time(matrix, jnp.ones((SIDE, columns), dtype)) for columns in (1, wide)}
    return {"bytes_per_s": matrix.nbytes / seconds[1], "flop_per_s": 2 * SIDE * SIDE * wide / seconds[wide]}


SIDE = 8192  # of the matrix
PRODUCTS = 4  # in one call, each of the one before, so that its launch weighs little


@jax.jit
def powers(a, b):
    return jax.lax.fori_loop(0, PRODUCTS, lambda _, x: (a @ x) * 1e-4, b)


def best_time(a, b, times: int = 5) -> float:
    """Seconds of a product a @ b: the fastest of several calls of a few, after one that compiles."""
    jax.block_until_ready(powers(a, b))
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        jax.block_until_ready(powers(a, b))
        seconds.append((time.perf_counter() - began) / PRODUCTS)
    return min(seconds)


def least_seconds(c: ModelConfig, prompt: int, lengths, slots: int, tally: Tally, rates: dict, mesh, dtype) -> tuple[float, float]:
    """What decoding would take if reading, or if multiplying, were all that it did: see the module. lengths [P G] of responses."""
    item = jnp.dtype(dtype).itemsize
    ways, tensor = rows_per_step(mesh), mesh.shape["tensor"]
    steps = max(lengths.max(), lengths.sum() / slots)
    table = c.vocab * c.width
    weights = tally.layout_bytes - (0 if c.tied else table * item / tensor)
    looked_at = 0  # columns, over layers and tokens
    for band in bands(c):
        back = np.minimum(prompt + np.arange(lengths.max()), band.window or np.inf)
        looked_at += len(band.layers) * np.cumsum(back)[lengths - 1].sum()
    reads = steps * weights + 2 * c.kv_heads * c.head_dim * item * looked_at / ways / tensor
    products = 2 * multiplied(c) * lengths.sum() + 4 * c.heads * c.head_dim * looked_at
    return reads / rates["bytes_per_s"], products / ways / tensor / rates["flop_per_s"]


def measured(tally: Tally, seconds: float, least: tuple[float, float]) -> dict:
    numbers = tally.metrics()
    return {
        "tokens": tally.generated,
        "seconds": round(seconds, 6),
        "tokens_per_s": round(tally.generated / seconds, 1),
        "occupancy": round(numbers["rollout/occupancy"], 4),
        "wasted_tokens": numbers["rollout/wasted_tokens"],
        "prefilled_tokens": tally.prefilled,
        "cache_gib": round(numbers["rollout/cache_gib"], 4),
        **{f"{phase}_s": round(s, 6) for phase, s in tally.seconds.items()},
        "host_s": round(seconds - sum(tally.seconds.values()), 6),
        "reading_bound_s": round(least[0], 6),
        "product_bound_s": round(least[1], 6),
        "fraction_of_bound": round(max(least) / tally.seconds["decode"], 3),
    }
