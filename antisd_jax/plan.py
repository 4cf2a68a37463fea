"""What a run is about to do, in a few lines, before anything is compiled."""

import math

import jax

from antisd_jax.model.decoder import abstract_decoding
from antisd_jax.model.logprobs import LOGITS
from antisd_jax.model.parameters import abstract, count
from antisd_jax.model.sharding import rows_per_step
from antisd_jax.rollout.cache import ladder, size_bytes
from antisd_jax.rollout.engine import STEPS
from antisd_jax.steps import Policy

GIB = 2.0**30


def memory(config, policy: Policy) -> dict[str, float]:
    """Estimated bytes a device, by what they hold. Stated formulas, not measurements.

    state: float32 weights, gradient and two moments, as the mesh divides them. decoding: the sampler's copy of the weights. cache: its
    keys and values, when a response is at its longest (stored prompts not counted). activations: of the largest micro-batch, what remat keeps of every layer, plus one layer whole.
    logits: one block's, with its probabilities and gradient.
    """
    m, mesh = policy.model, policy.mesh
    item = 2 if policy.dtype == "bfloat16" else 4
    ways, tensor = rows_per_step(mesh), mesh.shape["tensor"]
    slots = -(-(config.rollout.slots or config.problems * config.samples) // ways) * ways
    visit = min(STEPS, policy.responses)
    longest = ladder(policy.prompt_budget, policy.responses, visit)[-1]
    length = policy.context_budget + policy.responses
    tokens = max(policy.micro_tokens, length)
    mixed, projected = m.heads * m.head_dim / tensor, (2 * m.heads + 2 * m.kv_heads) * m.head_dim / tensor
    hidden, copies = m.feed_forward / tensor, 0
    if m.experts:
        hidden, copies = hidden * m.experts.per_token, 3 * m.width * m.experts.per_token
    layer = 4 * m.width + projected + 3 * hidden + copies
    saved = projected + m.width + (0 if m.experts else 2 * hidden)
    kept = {"full": 0, "attention": mixed, "dots": saved, "none": layer}[config.optim.remat]
    shards, laid_out = jax.tree.leaves(abstract(m, mesh)), jax.tree.leaves(abstract_decoding(m, mesh, policy.dtype))
    each = {"float32": 16, "bfloat16": 14}[config.optim.moments]
    return {
        "state": each * sum(math.prod(w.sharding.shard_shape(w.shape)) for w in shards),
        "decoding": sum(math.prod(w.sharding.shard_shape(w.shape)) * w.dtype.itemsize for w in laid_out),
        "cache": size_bytes(m, slots, longest, visit, policy.dtype) / ways / tensor,
        "logits": 3 * 4 * min(LOGITS, tokens * m.vocab / tensor),
        "activations": tokens * item * (m.layers * (m.width / tensor + kept) + layer),
    }


def credit(method) -> str:
    """The credit of a token, as a formula."""
    if not method.lam_max:
        return "group advantage alone"
    term, gate = method.term, method.gate
    u = {"teacher": "t − s", "student": "s", "length": "normalised length"}[term.signal]
    extras = [f"{name} {value}" for name in ("outlier", "clamp", "bound", "longest") if (value := getattr(term, name))]
    extras += ["standardised"] * term.standardise + [f"on {len(term.words)} words alone"] * bool(term.words)
    extras += [f"gate {gate.statistic}"] + [f"λ of each response by {gate.adaptive} log perplexity"] * bool(gate.adaptive)
    formula = f"group advantage {'+' if term.sign > 0 else '−'} λ·{'φ' if term.shape == 'jsd' else ''}({u}), λ ≤ {method.lam_max}"
    return ", ".join([formula, term.composition, *extras])


def describe(config, policy: Policy, problems: int, held_out: list[tuple[str, int, int]]) -> str:
    """The plan, as it is printed. held_out: name, problems and samples of each benchmark."""
    m = policy.model
    mesh = " × ".join(f"{name} {size}" for name, size in policy.mesh.shape.items())
    parts = memory(config, policy)
    return "\n".join(
        [
            f"model    {config.model.path}: {count(m):,} parameters, {m.layers} layers, width {m.width}, vocabulary {m.vocab}, {policy.dtype}",
            f"mesh     {mesh} ({policy.mesh.devices.flat[0].platform})",
            f"method   {config.method.name}: {credit(config.method)}",
            f"data     {config.data.path}: {problems} problems",
            "eval     " + (", ".join(f"{name}: {n} problems × {k}" for name, n, k in held_out) or "none"),
            f"step     {config.problems} problems × {config.samples} samples, micro-batches of {config.optim.micro_tokens} tokens; {config.steps} steps",
            f"lengths  prompt {policy.prompt_budget}, privileged prompt {policy.context_budget}, response {policy.responses} tokens",
            "memory   "
            + ", ".join(f"{k} {v / GIB:.2f}" for k, v in parts.items())
            + f" = {sum(parts.values()) / GIB:.2f} GiB a device, estimated",
            f"output   {config.output}",
        ]
    )
