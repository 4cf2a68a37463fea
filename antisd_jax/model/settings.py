"""config.json of a Hugging Face folder ↔ ModelConfig.

Read are the spelling of the published checkpoints (rope_theta, rope_scaling, torch_dtype) and the one that transformers 5
writes (rope_parameters, for Olmo-3 one a layer type). A field whose value would change the numbers in a way this decoder
does not implement is an error, never a default.
"""

import json
import math
from pathlib import Path

from antisd_jax.errors import UserError
from antisd_jax.model.parameters import Experts, LayerKind, ModelConfig
from antisd_jax.model.rope import Rope, Yarn

ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM", "olmo3": "Olmo3ForCausalLM"}
FULL, SLIDING = "full_attention", "sliding_attention"
# Fields whose other values would change the numbers: each must be absent or one of these.
FIXED = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False, None),
    "clip_qkv": (None,),
    "use_sliding_window": (False, None),
    "partial_rotary_factor": (1.0, None),
    "quantization_config": (None,),
    "decoder_sparse_step": (1, None),
    "mlp_only_layers": ([], None),
}
YARN_KEYS = {"rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "attention_factor"}
YARN_KEYS |= {"beta_fast", "beta_slow", "truncate"}


def read_json(path: Path) -> dict:
    """A JSON object from a file that must exist. Raises UserError naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"model folder {path.parent} has no {path.name}") from None
    except (ValueError, RecursionError, OSError) as e:
        raise UserError(f"{path} cannot be read: {e}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, wanted a JSON object")
    return value


def load_config(folder: str | Path) -> ModelConfig:
    """A folder's config.json → ModelConfig.

    Raises UserError for another architecture, a missing field, a value of another type or one that is not implemented.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"model folder {folder} does not exist")
    path = folder / "config.json"
    return parse(read_json(path), str(path))


def parse(raw: dict, where: str) -> ModelConfig:
    """The content of a config.json → ModelConfig; `where` names it in errors."""
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in ARCHITECTURES:
        raise UserError(f"{where}: model_type is {family!r}, wanted one of {', '.join(ARCHITECTURES)}")
    for name, allowed in FIXED.items():
        if name in raw and raw[name] not in allowed:
            raise UserError(f"{where}: {name} is {raw[name]!r}, supported: {allowed[0]!r}")

    def field(name, kind=int):
        if name not in raw:
            raise UserError(f"{where}: field {name!r} is missing")
        return _typed(raw[name], kind, name, where)

    width, heads, layers = field("hidden_size"), field("num_attention_heads"), field("num_hidden_layers")
    head_dim = field("head_dim") if family != "olmo3" or raw.get("head_dim") is not None else width // heads
    kv_heads = heads if family == "olmo3" and raw.get("num_key_value_heads") is None else field("num_key_value_heads")
    if heads % kv_heads or head_dim % 2:
        raise UserError(f"{where}: {heads} heads of {head_dim} over {kv_heads} key/value heads do not fit together")
    experts = None
    if family == "qwen3_moe":
        experts = Experts(_experts(raw, where), field("num_experts_per_tok"), field("norm_topk_prob", bool))
        if experts.per_token > experts.count:
            raise UserError(f"{where}: num_experts_per_tok is {experts.per_token} of {experts.count} experts")
    return ModelConfig(
        vocab=field("vocab_size"),
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        feed_forward=field("moe_intermediate_size" if experts else "intermediate_size"),
        kinds=_kinds(raw, family, layers, where),
        norm_eps=field("rms_norm_eps", float),
        tied=_typed(raw.get("tie_word_embeddings", False), bool, "tie_word_embeddings", where),
        norm_after=family == "olmo3",
        norm_whole=family == "olmo3",
        experts=experts,
    )


def _typed(value, kind, name: str, where: str):
    """A bool, or a positive and finite int or float; an int will do for a float."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is float and number and 0 < value < math.inf:
        return float(value)
    if (kind is int and number and isinstance(value, int) and value > 0) or (kind is bool and isinstance(value, bool)):
        return value
    raise UserError(f"{where}: {name} is {value!r}, wanted {'a bool' if kind is bool else f'a positive {kind.__name__}'}")


def _experts(raw: dict, where: str) -> int:
    """num_experts, which transformers 5 also spells num_local_experts."""
    found = [_typed(raw[k], int, k, where) for k in ("num_experts", "num_local_experts") if k in raw]
    if len(set(found)) != 1:
        raise UserError(f"{where}: num_experts is {' and '.join(map(str, found)) or 'missing'}, wanted one value")
    return found[0]


def _kinds(raw: dict, family: str, layers: int, where: str) -> tuple[LayerKind, ...]:
    """The shortest pattern of layers that repeats."""
    default = [FULL if family != "olmo3" or i % 4 == 3 else SLIDING for i in range(layers)]
    types = raw.get("layer_types") or default
    if not isinstance(types, list) or len(types) != layers or any(t not in (FULL, SLIDING) for t in types):
        raise UserError(f"{where}: layer_types is {str(types)[:60]}, wanted {layers} entries of {FULL}, {SLIDING}")
    if family != "olmo3" and SLIDING in types:
        raise UserError(f"{where}: layer_types has {SLIDING}, supported in olmo3 only")
    window = _typed(raw.get("sliding_window"), int, "sliding_window", where) if SLIDING in types else None
    ropes = {t: _rope(raw, family, t, where) for t in set(types)}
    period = next(n for n in range(1, layers + 1) if layers % n == 0 and types == types[:n] * (layers // n))
    return tuple(LayerKind(ropes[t], window if t == SLIDING else None) for t in types[:period])


def _rope(raw: dict, family: str, layer_type: str, where: str) -> Rope:
    """The rotary embedding of one layer type. In Olmo-3, YaRN belongs to the full-attention layers only."""
    new, old = raw.get("rope_parameters"), raw.get("rope_scaling")
    for name, given in (("rope_parameters", new), ("rope_scaling", old)):
        if not isinstance(given, dict | None):
            raise UserError(f"{where}: {name} is {given!r}, wanted an object")
    if new and old and new != old:
        raise UserError(f"{where}: rope_parameters and rope_scaling contradict each other")
    given = new or old or {}
    if FULL in given or SLIDING in given:
        if layer_type not in given:
            raise UserError(f"{where}: rope_parameters has no {layer_type}")
        given = given[layer_type] or {}
    elif family == "olmo3" and layer_type == SLIDING:
        given = {k: v for k, v in given.items() if k == "rope_theta"}
    bases = {_typed(x, float, "rope_theta", where) for x in (raw.get("rope_theta"), given.get("rope_theta")) if x is not None}
    if len(bases) != 1:
        raise UserError(f"{where}: rope_theta is {' and '.join(map(str, sorted(bases))) or 'missing'}, wanted one value")
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default":
        return Rope(bases.pop())
    unknown = sorted(set(given) - YARN_KEYS)
    if kind != "yarn" or unknown:
        raise UserError(f"{where}: rope_type is {kind!r} {unknown or ''}, supported: default, yarn".replace("  ", " "))
    return Rope(bases.pop(), _yarn(given, raw.get("original_max_position_embeddings"), where))


def _yarn(given: dict, elsewhere, where: str) -> Yarn:
    """YaRN's numbers, with its paper's defaults. elsewhere: an original context beside the rope settings, which must agree."""

    def number(name, default=None, kind=float):
        value = given.get(name)
        return default if value is None and default is not None else _typed(value, kind, f"yarn's {name}", where)

    factor, original = number("factor"), number("original_max_position_embeddings", kind=int)
    if elsewhere not in (None, original):
        raise UserError(f"{where}: original_max_position_embeddings is {elsewhere!r} and, for yarn, {original}; wanted one value")
    fast, slow = number("beta_fast", 32.0), number("beta_slow", 1.0)
    if fast < slow:
        raise UserError(f"{where}: yarn's beta_fast {fast} is below its beta_slow {slow}")
    scale = number("attention_factor", 0.1 * math.log(factor) + 1 if factor > 1 else 1.0)
    return Yarn(factor, original, scale, fast, slow, _typed(given.get("truncate", True), bool, "yarn's truncate", where))


def render(c: ModelConfig, *, eos: int, bos: int | None, positions: int) -> dict:
    """The content of a config.json for a new model, in the published checkpoints' spelling."""
    family = "qwen3_moe" if c.experts else "olmo3" if c.norm_after else "qwen3"
    yarns = [k.rope.yarn for k in c.kinds if k.rope.yarn]
    out = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": c.vocab,
        "hidden_size": c.width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.feed_forward,
        "rope_theta": c.kinds[0].rope.base,
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
    if yarns:
        out["rope_scaling"] = _scaling(yarns[0])
    if c.experts:
        e = c.experts
        out |= {"num_experts": e.count, "num_experts_per_tok": e.per_token, "norm_topk_prob": e.renormalise}
        out |= {"moe_intermediate_size": c.feed_forward, "decoder_sparse_step": 1, "mlp_only_layers": []}
    if family == "olmo3":
        types = [SLIDING if k.window else FULL for k in c.kinds] * (c.layers // len(c.kinds))
        out |= {"layer_types": types, "sliding_window": next((k.window for k in c.kinds if k.window), None)}
    return out


def _scaling(y: Yarn) -> dict:
    out = {"rope_type": "yarn", "factor": y.factor, "original_max_position_embeddings": y.original}
    out |= {"attention_factor": y.attention_factor, "beta_fast": y.beta_fast, "beta_slow": y.beta_slow}
    return out if y.truncate else out | {"truncate": False}


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
    ids = ids if isinstance(ids, list) else [ids]
    if not ids or not all(type(i) is int and i >= 0 for i in ids):
        raise UserError(f"{folder}: eos_token_id is {ids}, wanted token ids")
    return tuple(ids)
