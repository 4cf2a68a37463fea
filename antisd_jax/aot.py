"""`antisd plan`: compile a run's programs for hardware that is not here, and say whether they fit.

`antisd plan FILE.yaml … --topology=v5p:4x4x4 [--key=value …]`; the keys are those of training. hardware.py says which topologies
there are. No weights are read.

Of every program come the peak memory of a device, with what the run keeps there besides (its optimizer state, say); by hand the matrix
products, and the bytes of weights, cache and state that have to be read; the least times for both that published figures allow; and
from the compiled program its collectives.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from antisd_jax import config as configuration
from antisd_jax.batching import buckets
from antisd_jax.errors import UserError
from antisd_jax.hardware import CHIPS, Chip, topology_devices
from antisd_jax.learner import abstract_state, accumulate, apply
from antisd_jax.log import say
from antisd_jax.model.decoder import abstract_decoding
from antisd_jax.model.parameters import ModelConfig, abstract, count, multiplied
from antisd_jax.model.settings import load_config
from antisd_jax.model.sharding import make_mesh, named, replicated, rows_per_step, use_mesh
from antisd_jax.rollout import cache as caching
from antisd_jax.rollout import engine
from antisd_jax.score import exact_products, score
from antisd_jax.steps import model_folder, refuse_mesh
from antisd_jax.types import Batch, Rows

GIB = 2.0**30
ALLOWED = 0.9  # of a chip's memory


@dataclass(frozen=True)
class Task:
    """One program. lower: its lowering; kept: bytes a device that the run holds meanwhile and that are not its arguments.

    products: FLOPs of its matrix products, over all devices. reads: bytes a device that it cannot do without reading or writing:
    weights, cache, state and gradient.
    """

    name: str
    lower: Callable
    kept: float
    products: float
    reads: float


@dataclass(frozen=True)
class Found:
    """What the compiler said of one Task, bytes of a device. peak holds what is kept, too."""

    name: str
    peak: float
    arguments: float
    temporary: float
    products: float  # a device's share
    reads: float
    collectives: Counter  # bytes that come out of them, by kind
    refused: str = ""  # where the compiler gave up


def share(tree) -> float:
    """Bytes a device of abstract arrays."""
    return float(sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)))


def tasks(config: configuration.Config, c: ModelConfig, mesh) -> list[Task]:
    """The programs of a step: each at its longest, and the scores and gradients where the most tokens are together as well."""
    dtype, ways = config.model.dtype, rows_per_step(mesh)
    weights = abstract(c, mesh)
    state = abstract_state(weights, replace(config.optim, offload=False), mesh)  # as the optimizer's step finds it
    decoding = abstract_decoding(c, mesh, dtype)
    moments, copied = 0.0 if config.optim.offload else share(state.optimizer), share(weights) / 4 * jnp.dtype(dtype).itemsize
    slots = config.rollout.slots or config.problems * config.samples
    out = [prefill_task(config, c, mesh, weights, decoding, moments, slots)]
    responses = [config.lengths.response]
    if config.eval.every and config.eval.response > config.lengths.response:
        responses.append(config.eval.response)
    out += [decode_task(config, c, mesh, decoding, share(weights) + moments, slots, r) for r in responses]
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
    rollouts = config.problems * config.samples
    for name, budget, count_ in (
        ("gradient", config.lengths.prompt, rollouts // config.optim.minibatches),
        ("score", config.lengths.context, rollouts),
    ):
        for rows, length in largest(buckets(budget + config.lengths.response), config.optim.micro_tokens, count_, ways):
            batch = abstract_batch(config, mesh, rows, length)
            products = forward_products(c, rows, length, batch.teacher_logprobs.shape[1])
            if name == "score":
                lower = partial(score.lower, weights, batch.rows, number, c=c, responses=batch.teacher_logprobs.shape[1], dtype=dtype)
                out.append(Task(f"score {rows} × {length}", lower, moments, sum(products), copied))
                continue
            how = dict(c=c, o=config.optim, term=config.method.term, dtype=dtype)
            lower = partial(accumulate.lower, weights, weights, batch, number, number, number, **how)
            times = PASSES[config.optim.remat]
            total = sum(n * t for n, t in zip(products, times))
            out.append(Task(f"gradient {rows} × {length}", lower, moments, total, times[0] * copied + 2 * share(weights)))
    out.append(Task("apply", partial(apply.lower, state, weights, o=config.optim), 0.0, 0.0, 2 * share(state) + share(weights)))
    return out


# How often a gradient computes the products of projections, of attention and of the vocabulary, a forward pass being one.
PASSES = {"none": (3, 3, 4), "dots": (3, 4, 4), "attention": (4, 3, 4), "full": (4, 4, 4)}


def largest(sizes: list[int], tokens: int, count_: int, ways: int) -> list[tuple[int, int]]:
    """(rows, length) of the longest micro-batch, and of the one with the most tokens where that is another."""
    whole = -(-count_ // ways)
    shapes = [(min(max(tokens // length, 1), whole) * ways, length) for length in sizes]
    return list(dict.fromkeys([shapes[-1], max(shapes, key=lambda s: (s[0] * s[1], s[1]))]))


def abstract_rows(mesh, *shape, kind=jnp.int32):
    return jax.ShapeDtypeStruct(shape, kind, sharding=named(mesh, "rows"))


def abstract_batch(config, mesh, rows: int, length: int) -> Batch:
    """A micro-batch of so many rows of T = `length` tokens."""
    whole = partial(abstract_rows, mesh)
    flat, wide = whole(rows, kind=jnp.float32), whole(rows, min(config.lengths.response, length), kind=jnp.float32)
    return Batch(
        rows=Rows(whole(rows, length), whole(rows), whole(rows)),
        sequence_advantages=flat,
        teacher_logprobs=wide,
        term_weights=wide if config.method.term.words else whole(rows, 1, kind=jnp.float32),
        loss_weights=flat,
        sampled_logprobs=wide if config.optim.importance_cap else None,
        old_logprobs=wide if config.optim.minibatches > 1 else None,
    )


def prefill_task(config, c: ModelConfig, mesh, weights, decoding, moments: float, slots: int) -> Task:
    """The prompts of a slotful of samples; the cache stands by, at its first size."""
    ways, dtype, prompt = rows_per_step(mesh), config.model.dtype, config.lengths.prompt
    steps = min(engine.STEPS, config.lengths.response)
    groups = min(-(-slots // ways // config.samples) or 1, -(-config.problems // ways)) * ways
    first = caching.ladder(prompt, config.lengths.response, steps)[0]
    held = caching.size_bytes(c, slots, first, steps, dtype) / mesh.shape["tensor"] / ways
    lower = partial(engine.prefill.lower, weights, abstract_rows(mesh, groups, prompt), abstract_rows(mesh, groups), c=c, dtype=dtype)
    products = sum(forward_products(c, groups, prompt, logits=0))
    return Task(f"prefill {groups} × {prompt}", lower, moments + share(decoding) + held, products, share(decoding))


def decode_task(config, c: ModelConfig, mesh, decoding, weights: float, slots: int, responses: int) -> Task:
    """One visit of the host at the largest cache. The prompts that are stored for later samples are counted as one slotful."""
    ways, dtype, prompt = rows_per_step(mesh), config.model.dtype, config.lengths.prompt
    slots, steps = -(-slots // ways) * ways, min(engine.STEPS, responses)
    columns = caching.ladder(prompt, responses, steps)[-1]

    def placed(tree, *axes):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=named(mesh, *axes[: x.ndim])), tree)

    caches = placed(jax.eval_shape(lambda: caching.empty(c, slots, columns, steps, dtype)), *caching.AXES)
    state_of_slots = placed(jax.eval_shape(lambda: engine.idle(c, slots, dtype)), "rows")
    at = [band.columns(columns, steps) - steps for band in caching.bands(c)]
    how = engine.program(c, config.sampling, (0,), responses, dtype)
    lower = partial(engine.decode.lower, decoding, caches, state_of_slots, abstract_rows(mesh, slots), columns - steps, at, how)
    stored = caching.size_bytes(c, -(-slots // config.samples), prompt, steps, dtype) / ways / mesh.shape["tensor"]
    products = steps * slots * (2 * multiplied(c) + attention_products(c, columns, columns + 1))
    reads = steps * (share(decoding) + share(caches))
    return Task(f"decode {slots} × {columns}, {steps} tokens", lower, weights + stored, products, reads)


def attention_products(c: ModelConfig, begin: int, end: int) -> float:
    """FLOPs of scores and weighted values of the tokens begin … end − 1 of a sequence, over all layers."""
    seen = sum(len(band.layers) * np.minimum(np.arange(begin, end) + 1, band.window or np.inf).sum() for band in caching.bands(c))
    return 4.0 * c.heads * c.head_dim * seen


def forward_products(c: ModelConfig, rows: int, length: int, logits: int) -> tuple[float, float, float]:
    """FLOPs of a forward pass over rows × length tokens: projections, attention, and `logits` of each row through the vocabulary."""
    table = c.vocab * c.width
    return 2.0 * rows * length * (multiplied(c) - table), rows * attention_products(c, 0, length), 2.0 * rows * logits * table


def compile_task(task: Task, devices: int) -> Found:
    """Lower and compile. A program that the compiler refuses for its size is a finding, not an error."""
    lowered = task.lower()
    try:
        done = lowered.compile()
    except jax.errors.JaxRuntimeError as e:
        used = re.search(r"(?:Used |temporaries \()([\d.]+)([GM])", str(e))
        if not used:
            raise
        peak = float(used[1]) * (GIB if used[2] == "G" else 2.0**20)
        return Found(task.name, peak + task.kept, 0, 0, task.products / devices, task.reads, Counter(), "refused by the compiler")
    m = done.memory_analysis()
    peak = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes + task.kept
    moved = collectives(done.as_text())
    return Found(task.name, peak, m.argument_size_in_bytes, m.temp_size_in_bytes, task.products / devices, task.reads, moved)


KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}


def collectives(text: str) -> Counter:
    """Bytes that a device gets out of collectives, by kind, in a compiled program's text.

    Loops count as often as they run: as the text says, or by the one constant that their condition compares with, or else once. Of a
    pair of start and done the latter has the output.
    """
    own: dict[str, Counter] = {}
    numbers: dict[str, list[int]] = {}
    calls: dict[str, list[tuple[str, int]]] = {}
    name = entry = ""
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            name = head[2]
            entry = name if head[1] else entry
            own[name], calls[name], numbers[name] = Counter(), [], []
        elif found := re.search(rf"= (.*?) ({KINDS})(?:-done)?\(", line):
            shapes = re.findall(r"(\w+)\[([\d,]*)\]", found[1])
            own[name][found[2]] += sum(SIZES.get(t, 4) * math.prod(map(int, filter(None, d.split(",")))) for t, d in shapes)
        elif constant := re.search(r"= s32\[\]\S* constant\((\d+)\)", line):
            numbers[name].append(int(constant[1]))
        elif name and "-done(" not in line and "-update(" not in line:
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            condition = re.search(r"condition=%?([\w.\-]+)", line)
            compared = numbers.get(condition[1], []) if condition else []
            times = int(trips[1]) if trips else compared[0] if len(compared) == 1 else 1
            for called in re.findall(r"(?:body|to_apply|calls)=%?([\w.\-]+)", line):
                calls[name].append((called, times))

    def total(name: str) -> Counter:
        out = Counter(own.get(name, {}))
        for called, times in calls.get(name, []):
            for kind, n in total(called).items():
                out[kind] += n * times
        return out

    return total(entry)


def plan(config: configuration.Config, say=say) -> list[Found]:
    """Compile every program for config.mesh.topology and say what comes out. Raises UserError when one does not fit."""
    topology = config.mesh.topology
    if not topology:
        raise UserError("antisd plan needs --topology=NAME, for instance v5p:4x4x4, or cpu:8")
    c = load_config(model_folder(config.model.path, config.model.revision, weights=False))
    devices = topology_devices(topology)
    mesh = make_mesh(config.mesh, devices)
    refuse_mesh(config, c, mesh)
    chip = CHIPS.get(topology.partition(":")[0])
    axes = " × ".join(f"{name} {size}" for name, size in mesh.shape.items())
    say(f"{config.model.path}: {count(c):,} parameters on {topology}, {len(devices)} devices: {axes}")
    found = []
    described = tasks(config, c, mesh)  # out here: under the mesh of absent devices nothing can be computed
    with use_mesh(mesh), exact_products(config.model.dtype):
        for task in described:
            found.append(compile_task(task, len(devices)))
            say(sentence(found[-1], chip, config.model.dtype))
    if chip:
        refuse_too_large(found, chip, config)
        most = max(found, key=lambda f: f.peak)
        say(f"  fits: the largest, {most.name}, takes {most.peak / chip.memory:.0%} of {chip.memory / GIB:.1f} GiB a device")
    return found


def sentence(f: Found, chip: Chip | None, dtype: str) -> str:
    of = f" of {chip.memory / GIB:.1f}" if chip else ""
    if f.refused:
        return f"  {f.name}: {f.peak / GIB:.2f}{of} GiB, {f.refused}"
    moved = ", ".join(f"{kind} {n / GIB:.3g}" for kind, n in sorted(f.collectives.items())) or "none"
    products, reads = f"{f.products / 1e12:.4g} TFLOP", f"{f.reads / GIB:.4g} GiB"
    if chip:
        products += f" ({1e3 * f.products / chip.flops:.4g} ms)" if dtype == "bfloat16" else ""
        reads += f" ({1e3 * f.reads / chip.bandwidth:.4g} ms)"
    return (
        f"  {f.name}: {f.peak / GIB:.2f}{of} GiB a device (arguments {f.arguments / GIB:.2f}, temporary {f.temporary / GIB:.2f});"
        f" products {products}; weights, cache and state read {reads}; collectives, GiB: {moved}"
    )


def refuse_too_large(found: list[Found], chip: Chip, config: configuration.Config) -> None:
    """Raises UserError when a program needs more than is allowed, with the keys that would help."""
    worst = max(found, key=lambda f: f.peak)
    if worst.peak <= ALLOWED * chip.memory:
        return
    smaller = (
        "fewer optim.micro_tokens, "
        if " × " in worst.name and config.optim.micro_tokens >= 2 * int(worst.name.split()[3].strip(","))
        else ""
    )
    helps = {
        "prefill": "fewer rollout.slots",
        "decode": "fewer rollout.slots, or more mesh.tensor,",
        "score": f"{smaller}more mesh.fsdp or mesh.tensor",
        "gradient": f"{smaller}{'' if config.optim.remat == 'full' else 'optim.remat=full, '}more mesh.fsdp or mesh.tensor",
        "apply": f"{'' if config.optim.moments == 'bfloat16' else 'optim.moments=bfloat16, '}more mesh.fsdp",
    }
    away = "" if config.optim.offload or worst.name == "apply" else "optim.offload=true, "
    raise UserError(
        f"does not fit: {worst.name} needs {worst.peak / GIB:.1f} GiB a device (arguments {worst.arguments / GIB:.1f}, temporary"
        f" {worst.temporary / GIB:.1f}), {ALLOWED:.0%} of {chip.memory / GIB:.1f} are there; {away}{helps[worst.name.split()[0]]} would help"
    )
