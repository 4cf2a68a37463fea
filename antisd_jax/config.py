"""The configuration of a run: YAML files merged left to right, then --a.b=value; strictly typed; resolved into one file.

Each component declares its own small frozen dataclass; this module only joins and checks them.
"""

import dataclasses
import hashlib
import json
import math
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from antisd_jax.checkpoint import CheckpointConfig
from antisd_jax.errors import UserError, nearest
from antisd_jax.evaluate import EvalConfig
from antisd_jax.learner import OptimConfig
from antisd_jax.model.decoder import REMAT
from antisd_jax.model.sharding import MeshConfig
from antisd_jax.objective.advantage import Term
from antisd_jax.objective.gate import STATISTICS, Gate
from antisd_jax.objective.loss import AGGREGATIONS
from antisd_jax.processes import ProcessConfig
from antisd_jax.rewards.pool import RewardConfig
from antisd_jax.rollout.sampling import RolloutConfig, Sampling
from antisd_jax.text.data import DataConfig
from antisd_jax.text.prompt import PromptConfig
from antisd_jax.watchdog import MODES, WatchdogConfig

# Keys that a run in an existing folder may change: where it is, how far it goes, what it only reports, and the machine.
FREE = (
    "output",
    "steps",
    "log_rollouts",
    "dump_every",
    "checkpoint.",
    "watchdog.",
    "mesh.",
    "processes.",
    "rollout.compile_first",
    "rollout.slots",
    "optim.offload",
    "optim.micro_tokens",
    "optim.remat",
)


@dataclass(frozen=True)
class ModelConfig:
    """The policy, and the numbers it computes in."""

    path: str = "tiny"  # a Hugging Face folder, a hub name (its `revision` is downloaded), or "tiny" for the embedded model [–; –]
    revision: str = "main"  # branch, tag or commit on the hub [–; –]
    dtype: str = "float32"  # type of activations, float32 or bfloat16; weights are kept in float32 [–; ours]


@dataclass(frozen=True)
class Lengths:
    """Budgets of the student's prompt, the teacher's privileged prompt, and the response."""

    prompt: int = 24  # the longest prompt of the student; problems with longer ones are skipped [tokens; ours]
    context: int = 128  # the longest privileged prompt of the teacher [tokens; ours]
    response: int = 96  # the longest response; 16384 in the released launcher, 32768 for a thinking model [tokens; ours]


@dataclass(frozen=True)
class Method:
    """The credit of a token: group advantage plus λ · term, with λ = g · lam_max."""

    name: str = "antisd"  # said in the plan and in reports [–; –]
    lam_max: float = 0.5  # strength λ of the term while the gate is open; 0 is GRPO [–; paper]
    normalise: bool = True  # divide the group advantage by the group's deviation; false is Dr.GRPO's [–; paper]
    term: Term = field(default_factory=Term)
    gate: Gate = field(default_factory=Gate)

    @property
    def active_gate(self) -> Gate:
        """The gate, or none where there is nothing to gate: λ_max = 0 is GRPO."""
        return self.gate if self.lam_max > 0 else Gate("none")

    @property
    def needs_teacher(self) -> bool:
        gated_by_teacher = self.gate.statistic not in ("none", "student_perplexity")
        return self.lam_max > 0 and (self.term.signal == "teacher" or gated_by_teacher)


@dataclass(frozen=True)
class InitConfig:
    """Where a run's first weights come from, if not from `model.path`."""

    run: str = ""  # go on from another run's weights, moments and place in its data: RUN (its last checkpoint) or RUN@STEP [–; –]
    optimizer: bool = True  # take over that run's moments of AdamW; false begins with new ones [–; paper]


@dataclass(frozen=True)
class Config:
    output: str = "runs/antisd"  # the run folder [–; –]
    seed: int = 0  # the seed of sampling, of the order of problems, and of the choice of siblings [–; –]
    steps: int = 200  # steps of training in all [steps; paper]
    problems: int = 32  # problems of a step [problems; paper]
    samples: int = 8  # rollouts of each problem, the group of the advantage [rollouts; paper]
    log_rollouts: int = 64  # rollouts written to rollouts.jsonl at each step; 0 none, -1 all [rollouts; ours]
    dump_every: int = 0  # from one dump of all rollouts and scores to the next, for `antisd replay`; 0 none [steps; ours]
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    lengths: Lengths = field(default_factory=Lengths)
    sampling: Sampling = field(default_factory=Sampling)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    method: Method = field(default_factory=Method)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    init: InitConfig = field(default_factory=InitConfig)
    processes: ProcessConfig = field(default_factory=ProcessConfig)


def load(files: list[str], overrides: list[str], cls=Config) -> Config:
    """Files merged left to right, then "a.b=value" strings. Raises UserError naming the key at fault."""
    config = parse(cls, files, overrides)
    _check(config)
    return config


def parse(cls, files: list[str], overrides: list[str]):
    """The same for any of the dataclasses, without the checks of a whole run."""
    merged: dict = {}
    for file in files:
        _merge(merged, read_yaml(file), file)
    for override in overrides:
        key, _, text = override.partition("=")
        try:
            value = plain_yaml(text)
        except yaml.YAMLError:
            value = text
        *parents, last = key.split(".")
        nested = {last: value}
        for parent in reversed(parents):
            nested = {parent: nested}
        _merge(merged, nested, f"--{key}")
    return build(cls, merged)


class _Loader(yaml.SafeLoader):
    """Without dates: no key has one, and 2024-01-01 may name a folder."""

    yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def plain_yaml(text: str):
    """Its value, of the types that JSON has. Raises YAMLError."""
    return yaml.load(text, _Loader)


def read_yaml(file: str | Path) -> dict:
    try:
        value = plain_yaml(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"config file {file} cannot be read: {getattr(e, 'strerror', None) or 'not UTF-8 text'}") from None
    except yaml.YAMLError as e:
        raise UserError(f"config file {file} is not YAML: {' '.join(str(e).split())}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"config file {file} holds a {type(value).__name__}, wanted key: value lines")
    return value


def _merge(into: dict, new: dict, where: str) -> None:
    for key, value in new.items():
        if isinstance(value, dict):
            inner = into.setdefault(key, {})
            if not isinstance(inner, dict):
                raise UserError(f"{where}: {key} is a section here and a value before")
            _merge(inner, value, where)
        else:
            into[key] = value


def build(cls, values: dict, path: str = "", root=None):
    """A mapping → a dataclass, every key known and every value of the declared type. root: the class that paths start from."""
    root = root or cls
    hints = typing.get_type_hints(cls)
    made = {}
    for key, value in values.items():
        if key not in hints:
            raise UserError(f"unknown config key {path}{key}{_suggest(root, path + str(key))}")
        made[key] = _convert(hints[key], value, f"{path}{key}", root)
    return cls(**made)


def _keys(cls, path: str = "") -> list[str]:
    """The dotted names of all leaves."""
    hints = typing.get_type_hints(cls)
    return [k for name, t in hints.items() for k in (_keys(t, f"{path}{name}.") if dataclasses.is_dataclass(t) else [path + name])]


def _suggest(root, key: str) -> str:
    """The nearest known key or section: the one whose last part is the same, else the closest spelling."""
    leaves = _keys(root)
    sections = {k.rsplit(".", i)[0] for k in leaves for i in range(1, k.count(".") + 1)}
    same = next((k for k in leaves if k.rpartition(".")[2] == key.rpartition(".")[2]), None)
    return f" (did you mean {same!r}?)" if same else nearest(key, [*leaves, *sections])


def _convert(kind, value, key: str, root):
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise UserError(f"{key} is a section of keys, got {value!r}")
        return build(kind, value, f"{key}.", root)
    if typing.get_origin(kind) is tuple and isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_convert(typing.get_args(kind)[0], v, f"{key}[{i}]", root) for i, v in enumerate(value))
    if kind is float and isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        value = float(value)  # YAML reads 1e-6 as a word
    if kind is float and type(value) is int and abs(value) < 1e308:
        value = float(value)
    wanted = typing.get_origin(kind) or kind
    if isinstance(kind, types.UnionType) or not isinstance(value, wanted) or (kind is int and isinstance(value, bool)):
        raise UserError(f"{key}: got {value!r}, wanted {getattr(kind, '__name__', kind)}")
    _need(kind is not float or math.isfinite(value), key, value, "a finite number")
    return value


def _need(ok: bool, key: str, value, wanted: str):
    if not ok:
        raise UserError(f"{key}: got {value!r}, wanted {wanted}")


CHOICES = {
    "model.dtype": ("float32", "bfloat16"),
    "optim.moments": ("float32", "bfloat16"),
    "method.term.sign": (-1, 1),
    "method.term.shape": ("jsd", "linear"),
    "method.term.signal": ("teacher", "student", "length"),
    "method.term.composition": ("additive", "multiplicative"),
    "method.gate.statistic": STATISTICS,
    "optim.aggregation": AGGREGATIONS,
    "optim.remat": tuple(REMAT),
    "watchdog.stop": MODES,
}
ONE = "problems lengths.prompt lengths.response optim.minibatches optim.micro_tokens eval.samples checkpoint.keep watchdog.window".split()
ZERO = "steps method.lam_max method.gate.warmup seed eval.every eval.response eval.limit checkpoint.every checkpoint.best data.limit dump_every".split()


def _check(c: Config) -> None:
    """What the types cannot say."""
    flat = flatten(c)
    for key, allowed in CHOICES.items():
        for value in flat[key] if isinstance(flat[key], tuple) else (flat[key],):
            _need(value in allowed, key, value, f"one of {', '.join(map(str, allowed))}{nearest(str(value), map(str, allowed))}")
    for least, keys in enumerate((ZERO, ONE)):
        for key in keys:
            _need(flat[key] >= least, key, flat[key], f"at least {least}")
    _need(c.lengths.context >= c.lengths.prompt, "lengths.context", c.lengths.context, f"at least lengths.prompt = {c.lengths.prompt}")
    _need(c.seed < 2**32, "seed", c.seed, "below 2³²")
    _need(c.samples >= 2, "samples", c.samples, "at least 2: the advantage compares samples of one problem")
    _need(c.sampling.temperature > 0, "sampling.temperature", c.sampling.temperature, "above 0: log-probs are taken at it")
    _need(c.eval.sampling.temperature >= 0, "eval.sampling.temperature", c.eval.sampling.temperature, "at least 0")
    for key in ("sampling.top_p", "eval.sampling.top_p"):
        _need(0 < flat[key] <= 1, key, flat[key], "in (0, 1]")
    _need(bool(c.eval.data), "eval.data", list(c.eval.data), "at least one benchmark (eval.every=0 evaluates nothing)")
    c.eval.benchmarks()
    answers = c.reward.kind == "code" and "answer" in c.prompt.sources
    _need(not answers, "prompt.sources", list(c.prompt.sources), "no 'answer' with reward.kind=code: it is the tests")
    _need(
        not c.rollout.ahead or c.optim.importance_cap > 0,
        "optim.importance_cap",
        c.optim.importance_cap,
        "above 0 (2 is usual) with rollout.ahead: the rollouts are of the policy before",
    )
    gate = c.method.gate
    if gate.high:
        _need(0 < gate.back <= gate.high, "method.gate.back", gate.back, f"above 0 and at most method.gate.high = {gate.high}")
    if c.method.term.outlier and c.method.lam_max > 0:
        why = "with method.term.outlier, which takes the deviation of u over the gate's warm-up"
        _need(gate.statistic != "none", "method.gate.statistic", gate.statistic, f"one that has a warm-up {why}")
        _need(gate.warmup > 0, "method.gate.warmup", gate.warmup, f"at least 1 {why}")
        _need(c.method.term.signal == "teacher", "method.term.signal", c.method.term.signal, f"teacher {why}")
    adaptive = gate.adaptive and gate.statistic != "teacher_perplexity"
    _need(not adaptive, "method.gate.statistic", gate.statistic, "teacher_perplexity with method.gate.adaptive")
    _need(
        (c.problems * c.samples) % c.optim.minibatches == 0,
        "optim.minibatches",
        c.optim.minibatches,
        f"a divisor of the {c.problems * c.samples} rollouts a step",
    )


def flatten(config) -> dict:
    """Dotted key → value of every leaf."""
    out = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            out |= {f"{f.name}.{k}": v for k, v in flatten(value).items()}
        else:
            out[f.name] = value
    return out


def dump(config: Config) -> str:
    """The resolved configuration as YAML; reading it back gives the same configuration."""
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def bound(config: Config) -> dict:
    """The keys that decide a run's numbers."""
    return {k: v for k, v in flatten(config).items() if not k.startswith(FREE)}


def digest(config: Config) -> str:
    """A short hash of the keys that decide a run's numbers."""
    return hashlib.sha256(json.dumps(bound(config), sort_keys=True).encode()).hexdigest()[:16]


def differences(old: Config, new: Config) -> list[str]:
    """ "key: old → new" for every key that a run in an existing folder may not change."""
    a, b = bound(old), bound(new)
    return [f"{k}: {a[k]!r} → {b[k]!r}" for k in b if a[k] != b[k]]
