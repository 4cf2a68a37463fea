"""One part of the GPU measurement: `python gpu_worker.py PART SIZE [MODEL] [RATES]`, JSON lines on standard output. Started by gpu.py.

SIZE is full (the published shapes, bfloat16) or small (the same program on a CPU, float32, shapes that fit a test). RATES is what the part
"machine" printed. Weights are random. Every figure stands beside its floor: "floor" is the share of it that was reached.
"""

import json
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.94")

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from families import OLMO3_7B, QWEN3_4B_2507, QWEN3_8B, QWEN3_30B_A3B, small  # noqa: E402

from antisd_jax.arrays import named_key  # noqa: E402
from antisd_jax.bench import least_seconds, random_weights  # noqa: E402
from antisd_jax.config import Config, Method  # noqa: E402
from antisd_jax.learner import OptimConfig, accumulate, no_gradient, optimizer_step, start  # noqa: E402
from antisd_jax.model.decoder import forward  # noqa: E402
from antisd_jax.model.hf import load_weights, save_weights  # noqa: E402
from antisd_jax.model.parameters import count, init, multiplied  # noqa: E402
from antisd_jax.model.settings import parse  # noqa: E402
from antisd_jax.model.sharding import MeshConfig, make_mesh, place_rows, use_mesh  # noqa: E402
from antisd_jax.objective.advantage import Term  # noqa: E402
from antisd_jax.objective.gate import Gate  # noqa: E402
from antisd_jax.rollout.engine import generate  # noqa: E402
from antisd_jax.rollout.sampling import Sampling  # noqa: E402
from antisd_jax.score import exact_products, score  # noqa: E402
from antisd_jax.steps import Policy, learn, make_batches, teacher_scores  # noqa: E402
from antisd_jax.text.prompt import Context  # noqa: E402
from antisd_jax.text.rows import Problem  # noqa: E402
from antisd_jax.types import Batch, Rollouts, pack_rows  # noqa: E402

ROUNDS = 3  # timed, after one that compiles
MODELS = {
    "Qwen3-8B": QWEN3_8B,
    "Qwen3-4B": QWEN3_4B_2507,
    "Qwen3-30B-A3B, 12 layers": QWEN3_30B_A3B | {"num_hidden_layers": 12, "max_window_layers": 12},
    "Qwen3, small": small(QWEN3_8B, num_hidden_layers=2),
}
SIZES = {
    "full": dict(
        models=list(MODELS)[:3], dtype="bfloat16", cells=((64, 1024), (256, 1024), (64, 4096), (256, 4096), (64, 16384)), new=128,
        tail=(64, 8, 256, 300, 4096), train=((4, 4096), (1, 16384)), step=(8, 8, 256, 2048, 1024), side=8192, copy=2**32, tokens=16384,
    ),
    "small": dict(
        models=["Qwen3, small"], dtype="float32", cells=((4, 32), (8, 64)), new=16,
        tail=(4, 2, 16, 12, 48), train=((2, 64), (1, 128)), step=(2, 2, 16, 32, 32), side=256, copy=2**20, tokens=128,
    ),
}  # fmt: skip
REMAT = ("full", "attention")  # of the gradient alone; a whole step has the first


def tell(**row) -> None:
    print(json.dumps({k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}), flush=True)


def timed(f, rounds: int = ROUNDS) -> float:
    """Median seconds of f(), which returns what is to be waited for; once before, to compile."""
    jax.block_until_ready(f())
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(f())
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def memory() -> int:
    """Bytes that the device gives to arrays."""
    stats = jax.devices()[0].memory_stats()
    return stats["bytes_limit"] if stats else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def machine(size: dict, *_) -> None:
    """Bytes read and written a second by a copy, and FLOP/s of a product of random 16-bit matrices (32-bit ones in the small size)."""
    dtype, side = size["dtype"], size["side"]
    x = jnp.ones(size["copy"] // 2, jnp.bfloat16)
    a, b = (jax.random.normal(key, (side, side), dtype) for key in jax.random.split(jax.random.key(0)))
    add, multiply = jax.jit(lambda x: x + 1), jax.jit(lambda a, b: a @ b)  # of arguments: constants would be worked out by the compiler
    copied, product = timed(lambda: add(x), 10), timed(lambda: multiply(a, b), 10)
    device = jax.devices()[0]
    rates = {"bytes_per_s": 2 * x.nbytes / copied, "flop_per_s": 2 * side**3 / product}
    tell(part="machine", kind=device.device_kind, jax=jax.__version__, memory_gib=memory() / 2**30, dtype=dtype, **rates)


def parity(*_) -> None:
    """Our logits against those of transformers in float32, both from the same small folder, on this device; and transformers' own in bfloat16."""
    import tempfile

    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    tokens = np.random.default_rng(0).integers(1, 96, (3, 150))
    for name, raw in (("Qwen3", QWEN3_8B), ("Qwen3-MoE", QWEN3_30B_A3B), ("Olmo-3", OLMO3_7B)):
        mesh = one()
        with tempfile.TemporaryDirectory() as folder, use_mesh(mesh):
            (Path(folder) / "config.json").write_text(json.dumps(small(raw)))
            c = parse(small(raw), name)
            save_weights(Path(folder), c, init(c, 3))
            weights, logits = load_weights(Path(folder), c, mesh), {}
            for dtype in ("float32", "bfloat16"):
                theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval().to(device)
                with torch.no_grad():
                    logits["transformers", dtype] = theirs(torch.tensor(tokens, device=device)).logits.float().cpu().numpy()
                with exact_products(dtype):
                    hidden = forward(c, weights, tokens, jnp.full(3, 150), dtype=dtype)[0]
                    logits["antisd_jax", dtype] = np.asarray((hidden @ weights.output.T.astype(dtype)).astype(jnp.float32))
        exact = logits["transformers", "float32"]
        for (engine, dtype), found in logits.items():
            same = float((found.argmax(-1) == exact.argmax(-1)).mean())
            tell(part="parity", model=name, engine=engine, dtype=dtype, largest=float(np.abs(found - exact).max()), same_first=same)


def one():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def model(name: str):
    """(its numbers, a mesh of the first device)."""
    return parse(MODELS[name], name), one()


def sampled(c, weights, mesh, dtype: str, problems: int, samples: int, prompt: int, limits: np.ndarray, slots: int = 0):
    """(median Tally by decoding seconds, median seconds) of rollouts whose lengths are `limits` [P G]."""
    rng, found = np.random.default_rng(0), []
    prompts, ids = rng.integers(1, c.vocab, (problems, prompt)), np.arange(problems)
    for n in range(ROUNDS + 1):
        began = time.perf_counter()
        numbers = np.tile(np.arange(samples), (problems, 1))
        how = dict(c=c, responses=int(limits.max()), sampling=Sampling(), stop=(), dtype=dtype, slots=slots, limits=limits)
        _, tally = generate(weights, prompts, np.full(problems, prompt), named_key(0, n, "sample"), ids, numbers, **how)
        found.append((tally.seconds["decode"], time.perf_counter() - began, tally))
    found = sorted(found[1:], key=lambda x: x[0])[len(found[1:]) // 2]
    return found[2], found[1]


def fits(c, sequences: int, context: int, item: int) -> bool:
    """Float32 weights, decoding's copy, and a cache that may be a third larger than what is in it."""
    cache = 2 * c.layers * c.kv_heads * c.head_dim * item * sequences * context * 4 / 3
    return count(c) * (4 + item) + cache < 0.9 * memory()


def decode(size: dict, name: str, rates: dict) -> None:
    """Tokens a second at so many sequences and so much context, and of the prefill; as many sequences as fit where all do not."""
    c, mesh = model(name)
    item, dtype = jnp.dtype(size["dtype"]).itemsize, size["dtype"]
    with use_mesh(mesh), exact_products(dtype):
        weights = random_weights(c, 0, mesh)
        for wanted, context in size["cells"]:
            group = min(8, wanted)
            sequences = next((n for n in range(wanted, 0, -group) if fits(c, n, context, item)), 0)
            if not sequences:
                tell(part="decode", model=name, sequences=wanted, context=context, left_out="does not fit")
                continue
            limits = np.full((sequences // group, group), size["new"])
            prompt = context - size["new"] if context > size["new"] else context
            tally, _ = sampled(c, weights, mesh, dtype, *limits.shape, prompt, limits)
            least = least_seconds(c, prompt, limits, sequences, tally, rates, mesh, dtype)
            reading = 2 * multiplied(c) * tally.prefilled / rates["flop_per_s"]
            tell(
                part="decode", model=name, sequences=sequences, asked=wanted, context=context,
                tokens_per_s=tally.generated / tally.seconds["decode"], floor=max(least) / tally.seconds["decode"],
                prefill_tokens_per_s=tally.prefilled / tally.seconds["prefill"], prefill_floor=reading / tally.seconds["prefill"],
            )  # fmt: skip


def tail(size: dict, name: str, rates: dict) -> None:
    """Responses with a long tail through a quarter of the slots: continuous batching."""
    c, mesh = model(name)
    problems, samples, prompt, middle, longest = size["tail"]
    rng, dtype = np.random.default_rng(0), size["dtype"]
    limits = np.clip(np.exp(rng.normal(np.log(middle), 1.0, (problems, samples))), 1, longest).astype(int)
    slots = problems * samples // 4
    with use_mesh(mesh), exact_products(dtype):
        tally, seconds = sampled(c, random_weights(c, 0, mesh), mesh, dtype, problems, samples, prompt, limits, slots)
    least = least_seconds(c, prompt, limits, slots, tally, rates, mesh, dtype)
    occupancy = tally.generated / tally.decoded
    tell(part="tail", model=name, slots=slots, tokens_per_s=tally.generated / seconds, occupancy=occupancy, floor=max(least) / seconds)


def products(c, rows: int, length: int, passes: int) -> float:
    """FLOPs of a forward pass (1), or of a forward and a backward one (3), what is computed again left out; causal attention counts half."""
    return passes * rows * length * (2 * multiplied(c) + 2 * c.layers * c.heads * c.head_dim * length)


def train(size: dict, name: str, rates: dict) -> None:
    """Score (log-prob and entropy), gradient, and the optimizer's step."""
    c, mesh = model(name)
    dtype, optim = size["dtype"], {remat: OptimConfig(remat=remat, moments="bfloat16") for remat in REMAT}
    with use_mesh(mesh), exact_products(dtype):
        weights = random_weights(c, 0, mesh)
        gradient = no_gradient(weights)
        for rows, length in size["train"]:
            ids = np.random.default_rng(0).integers(1, c.vocab, (rows, length)).tolist()
            packed = place_rows(mesh, pack_rows(((row[:1], row[1:]) for row in ids), rows, length))
            seconds = timed(lambda packed=packed, length=length: score(weights, packed, 1.0, c=c, responses=length - 1, dtype=dtype))
            tell(part="score", **speed(c, name, rows, length, seconds, 1, rates))
            zeros, ones = np.zeros((rows, length - 1), np.float32), np.ones(rows, np.float32)
            batch = place_rows(mesh, Batch(packed, ones, zeros, np.zeros((rows, 1), np.float32), ones / rows / length))
            for remat, o in optim.items():
                seconds, how = [], dict(c=c, o=o, term=Term(), dtype=dtype)
                for _ in range(ROUNDS + 1):
                    began = time.perf_counter()
                    gradient, seen = jax.block_until_ready(accumulate(gradient, weights, batch, 0.0, np.inf, 1.0, **how))
                    seconds.append(time.perf_counter() - began)
                    del seen
                tell(part="update", **speed(c, name, rows, length, statistics.median(seconds[1:]), 3, rates), remat=remat)
        o = optim[REMAT[0]]
        state, seconds = start(weights, o, mesh), []
        for _ in range(ROUNDS + 1):
            began = time.perf_counter()
            state, _, _ = jax.block_until_ready(optimizer_step(state, gradient, o))
            seconds.append(time.perf_counter() - began)
        moved = count(c) * (4 + 4 + 2 * (2 + 4) + 4)  # weights and moments read and written, the gradient read
        taken = statistics.median(seconds[1:])
        tell(part="optimizer", model=name, seconds=taken, floor=moved / rates["bytes_per_s"] / taken)


def speed(c, name: str, rows: int, length: int, seconds: float, passes: int, rates: dict) -> dict:
    return {
        "model": name,
        "rows": rows,
        "length": length,
        "tokens_per_s": rows * length / seconds,
        "floor": products(c, rows, length, passes) / rates["flop_per_s"] / seconds,
    }


def step(size: dict, name: str, rates: dict) -> None:
    """Seconds of each phase of a whole step, of GRPO and of AntiSD with the same rollouts. Grades are drawn: graders are other processes' work."""
    c, mesh = model(name)
    problems, samples, prompt, context, longest = size["step"]
    rng, n, dtype = np.random.default_rng(0), problems * samples, size["dtype"]
    policy = Policy(c, mesh, None, (), prompt, context, longest, size["tokens"], dtype)
    rows = [Problem(i, "", "", None, "", "", tuple(rng.integers(1, c.vocab, prompt).tolist())) for i in range(problems)]
    contexts = [Context(tuple(rng.integers(1, c.vocab, context).tolist()), "solution") for _ in range(n)]
    limits = np.clip(np.exp(rng.normal(np.log(longest / 3), 0.7, (problems, samples))), 1, longest).astype(int)
    rewards = rng.integers(0, 2, (problems, samples)).astype(float)
    optim, seconds = OptimConfig(remat=REMAT[0], moments="bfloat16"), {"rollout": [], "teacher": [], "grpo": [], "antisd": []}
    methods = {"grpo": Method("grpo", 0.0, gate=Gate("none")), "antisd": Method()}
    with use_mesh(mesh), exact_products(dtype):
        state = start(random_weights(c, 0, mesh), optim, mesh)
        prompts, numbers = np.array([row.prompt_ids for row in rows]), np.tile(np.arange(samples), (problems, 1))
        for _ in range(ROUNDS + 1):
            marks = [time.perf_counter()]
            how = dict(c=c, responses=longest, sampling=Sampling(), stop=(), dtype=dtype, limits=limits)
            out, _ = generate(state.weights, prompts, np.full(problems, prompt), named_key(0, 0, "s"), np.arange(problems), numbers, **how)
            rollouts = Rollouts(*(np.asarray(x) for x in (out.tokens, out.lengths, out.logprobs, out.stopped)))
            marks.append(time.perf_counter())
            teacher, acts = teacher_scores(policy, state.weights, rows, contexts, rollouts, 1.0)
            marks.append(time.perf_counter())
            for method in methods.values():
                config = replace(Config(), method=method, optim=optim)
                work = make_batches(policy, rows, rewards, rollouts, teacher, acts[:, None].astype(np.float32), None, config)
                state, _, _ = learn(policy, state, work, method.lam_max, config, 1)
                jax.block_until_ready(state)
                marks.append(time.perf_counter())
            for key, taken in zip(seconds, np.diff(marks)):
                seconds[key].append(float(taken))
    found = {f"{key}_s": statistics.median(values[1:]) for key, values in seconds.items()}
    whole = found["rollout_s"] + found["antisd_s"] + found["teacher_s"]
    tell(part="step", model=name, tokens=int(limits.sum()), **found, antisd_over_grpo=whole / (found["rollout_s"] + found["grpo_s"]))


def torch_model(name: str, dtype: str):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    raw = dict(MODELS[name])
    config = AutoConfig.for_model(raw.pop("model_type"), **raw)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), attn_implementation="sdpa"), device


def wall(f, device: str, rounds: int = ROUNDS) -> float:
    """`timed`, for torch."""
    import torch

    seconds = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        f()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def peer_decode(size: dict, name: str, _) -> None:
    """transformers' generate at the first cell, its prefill in it."""
    import torch

    theirs, device = torch_model(name, size["dtype"])
    for sequences, context in size["cells"][:2]:
        prompt = max(context - size["new"], 1)
        ids = torch.randint(1, theirs.config.vocab_size, (sequences, prompt), device=device)
        how = dict(do_sample=True, top_k=0, max_new_tokens=size["new"], min_new_tokens=size["new"], pad_token_id=0)
        with torch.no_grad():
            seconds = wall(lambda: theirs.eval().generate(ids, attention_mask=torch.ones_like(ids), **how), device, 1)  # noqa: B023
        tell(
            part="decode",
            engine="transformers",
            model=name,
            sequences=sequences,
            context=context,
            tokens_per_s=sequences * size["new"] / seconds,
        )


def peer_train(size: dict, name: str, rates: dict) -> None:
    """torch's forward and backward with gradient checkpointing and its fastest attention, log-probs of every token; no optimizer."""
    import torch

    theirs, device = torch_model(name, size["dtype"])
    theirs.train().gradient_checkpointing_enable()
    c = parse(MODELS[name], name)
    for rows, length in size["train"]:
        ids = torch.randint(1, theirs.config.vocab_size, (rows, length), device=device)

        def work(ids=ids):
            theirs(ids, labels=ids, use_cache=False).loss.backward()
            theirs.zero_grad(set_to_none=True)

        tell(part="update", engine="torch", **speed(c, name, rows, length, wall(work, device), 3, rates))


def models(size: dict, *_) -> None:
    print(json.dumps(size["models"]))


PARTS = {f.__name__: f for f in (models, machine, parity, decode, tail, train, step, peer_decode, peer_train)}

if __name__ == "__main__":
    part, which, name, rates = (sys.argv[1:] + [""] * 3)[:4]
    PARTS[part](SIZES[which], name, json.loads(rates or "{}"))
