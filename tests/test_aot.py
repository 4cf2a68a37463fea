"""antisd plan: what it counts, against independent counts; and all programs compiled for a TPU that is not here."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT
from families import REAL, small

from antisd_jax import aot
from antisd_jax.config import Config, load
from antisd_jax.errors import UserError
from antisd_jax.hardware import topology_devices
from antisd_jax.learner import OptimConfig, abstract_state
from antisd_jax.model.decoder import abstract_decoding, forward, unstacked
from antisd_jax.model.parameters import Experts, LayerKind, ModelConfig, abstract, declare
from antisd_jax.model.rope import Rope
from antisd_jax.model.settings import parse
from antisd_jax.model.sharding import MeshConfig, make_mesh, param_shardings, use_mesh
from antisd_jax.tiny.random_folder import relative

PLANNED = [
    "eval.every=0",
    "problems=8",
    "samples=2",
    "lengths.prompt=32",
    "lengths.context=64",
    "lengths.response=64",
    "optim.micro_tokens=256",
]


def folder_of(path, settings):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(settings))
    return path


def test_products_are_those_that_xla_counts():
    """One layer and one chunk of 128 queries, since XLA counts a loop once; masked pairs are multiplied, too."""
    c, t = relative("qwen3", 256, 16, 1), 128
    weights, tokens = abstract(c, make_mesh(MeshConfig(), jax.devices()[:1])), jax.ShapeDtypeStruct((2, t), jnp.int32)

    def logits(weights, tokens):
        return forward(c, weights, tokens)[0] @ weights.output.T

    counted = jax.jit(logits).lower(weights, tokens).compile().cost_analysis()["flops"]
    projections, attention, table = aot.forward_products(c, 2, t, logits=t)
    assert min(projections, attention, table) > 0.15 * counted, "each weighs more than the tolerance"
    assert projections + attention * 2 * t / (t + 1) + table == pytest.approx(counted, rel=0.12)


def test_products_by_hand():
    """Two layers, one with a window of 2, and 4 experts of which a token takes 1: 3 tokens look at 1 + 2 + 3, and at 1 + 2 + 2."""
    kinds = (LayerKind(Rope(1e4)), LayerKind(Rope(1e4), 2))
    c = ModelConfig(10, 4, 2, heads=2, kv_heads=1, head_dim=2, feed_forward=8, kinds=kinds, experts=Experts(4, 1, True))
    layer = 16 + 8 + 8 + 16 + 4 * 4 + 3 * 32 + 4 + 4 + 2 + 2  # projections, router, one expert, norms
    assert aot.forward_products(c, 5, 3, logits=2) == (2 * 15 * (2 * layer + 4), 5 * 4 * 2 * 2 * (6 + 5), 2 * 10 * 40)


def test_the_longest_and_the_fullest_micro_batch_are_planned():
    assert aot.largest([128, 256, 384], 512, 64, 2) == [(2, 384), (4, 256)]
    assert aot.largest([128, 256], 512, 64, 2) == [(4, 256)]
    assert aot.largest([128, 256], 512, 3, 2) == [(4, 256)], "three sequences fill no more than four rows"


def test_collectives_are_counted_as_often_as_their_loop_runs():
    text = """
HloModule m
body.1 (p: f32[8]) -> f32[8] {
  %g = f32[8,4]{1,0} all-gather(%p), dimensions={0}
  %s = (bf16[2]{0}, bf16[16]{0}) all-gather-start(%p), dimensions={0}
  %d = bf16[16]{0} all-gather-done(%s)
  %q = (f32[3]{0}, f32[3]{0}, u32[], u32[]) collective-permute-start(%p)
  %e = f32[3]{0} collective-permute-done(%q)
}
scattered.3 (p: f32[8]) -> f32[4] {
  %c = f32[4]{0} reduce-scatter(%p), dimensions={0}
}
few.4 (p: (s32[], f32[8])) -> pred[] {
  %n = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}
ENTRY main.2 (p: f32[8]) -> f32[8] {
  %z = s32[] constant(7)
  %v = (s32[], f32[8]) while(%t), condition=%few.4, body=%scattered.3
  %r = (f32[10]{0}, bf16[2]{0}) all-reduce(%p, %o), to_apply=%add
  %a = ((f32[8]), f32[4]) async-start(%p), calls=%scattered.3
  %b = f32[4]{0} async-done(%a), calls=%scattered.3
  %w = f32[8] while(%p), condition=%cond.1, body=%body.1, backend_config={"known_trip_count":{"n":"36"}}
}
"""
    found = {"all-gather": 36 * (8 * 4 * 4 + 16 * 2), "collective-permute": 36 * 12, "all-reduce": 44, "reduce-scatter": 16 + 5 * 16}
    assert aot.collectives(text) == found


def test_decoding_weights_are_described_as_they_are_made(model, weights):
    mesh = make_mesh(MeshConfig(2, 2, 2))
    placed = jax.device_put(weights, param_shardings(mesh, declare(model)))
    with use_mesh(mesh):
        made, said = unstacked(model, placed, "bfloat16"), abstract_decoding(model, mesh, "bfloat16")
    assert jax.tree.structure(made) == jax.tree.structure(said)
    for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(said)):
        assert (a.shape, a.dtype) == (b.shape, b.dtype) and a.sharding.is_equivalent_to(b.sharding, a.ndim)


@pytest.mark.parametrize("family", ["Qwen3-30B-A3B"])
def test_a_plan_for_cpus_compiles_everything(tmp_path, family):
    """Memory that is there by definition is counted by hand: the optimizer's step holds the state and the gradient, and not the state twice."""
    folder = folder_of(tmp_path / "model", small(REAL[family]))
    experts = ["mesh.expert=2"] if "num_experts" in REAL[family] else []
    c = load([], [*PLANNED, f"model.path={folder}", "mesh.topology=cpu:8", "mesh.fsdp=2", "mesh.tensor=2", *experts])
    lines = []
    found = {f.name.split()[0]: f for f in aot.plan(c, say=lines.append)}
    assert list(found) == ["prefill", "decode", "gradient", "score", "apply"] and len(lines) > 5
    mesh = make_mesh(c.mesh, jax.devices())
    m = parse(small(REAL[family]), "model")
    state = aot.share(abstract_state(abstract(m, mesh), OptimConfig(), mesh))
    gradient = aot.share(abstract(m, mesh))
    assert found["apply"].arguments == pytest.approx(state + gradient, rel=1e-3) and found["apply"].temporary < state
    assert found["decode"].peak > found["decode"].arguments + state and found["gradient"].collectives.total() > 0


def test_what_does_not_fit_is_refused_with_the_largest_terms_and_what_would_help():
    found = [aot.Found("decode 8 × 64, 16 tokens", 3e9, 1e9, 1e9, 0, 0, {}), aot.Found("gradient 8 × 64", 15e9, 9e9, 5e9, 0, 0, {})]
    with pytest.raises(UserError, match=r"gradient 8 × 64 needs 14.0 GiB a device \(arguments 8.4, temporary 4.7\).*remat=full"):
        aot.refuse_too_large(found, aot.CHIPS["v5e"], Config())
    aot.refuse_too_large(found[:1], aot.CHIPS["v5e"], Config())


@pytest.mark.parametrize(
    "topology, message",
    [
        ("", "needs --topology"),
        ("b300:8", "wanted cpu:N or one of v5e"),
        ("h100:eight", "with its shape, as v5p:4x4x4 or h100:8"),
        ("h100:0x8", "with its shape"),
        ("cpu:99", "there are 8"),
    ],
)
def test_unknown_hardware_is_one_clear_line(tmp_path, topology, message):
    folder = folder_of(tmp_path / "model", small(REAL["Qwen3-8B"]))
    with pytest.raises(UserError, match=message):
        aot.plan(replace(load([], [f"model.path={folder}"]), mesh=MeshConfig(topology=topology)))


needs_cuda = pytest.mark.skipif(
    not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)),
    reason="JAX's CUDA libraries are not installed: pip install -e .[cuda]",
)


@pytest.mark.skipif(needs_cuda.args[0] is False, reason="JAX's CUDA libraries are installed")
def test_a_plan_for_gpus_says_what_to_install():
    with pytest.raises(UserError, match=r"topology h100:8: .*pip install \"antisd-jax\[cuda\]"):
        topology_devices("h100:8")


needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install -e .[tpu]")


def planned(tmp_path, *args):
    """antisd plan in a process of its own, as a user would call it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_LOG_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "antisd_jax", "plan", *map(str, args)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    "topology, memory",
    [pytest.param("v5e:2x2", "14.9", marks=needs_libtpu), pytest.param("h100:2x2", "74.5", marks=needs_cuda)],
)
@pytest.mark.parametrize(
    "family", ["Qwen3-8B", *(pytest.param(f, marks=pytest.mark.long) for f in ("Qwen3-30B-A3B", "Olmo-3-7B-Instruct"))]
)
def test_all_programs_compile_for_hardware_that_is_not_here(tmp_path, family, topology, memory):
    settings = small(REAL[family]) | {"head_dim": 128, "sliding_window": 128}
    folder = folder_of(tmp_path / "model", settings)
    options = [f"--{o}" for o in PLANNED] + [
        f"--model.path={folder}",
        "--model.dtype=bfloat16",
        f"--topology={topology}",
        "--mesh.tensor=2",
    ]
    options += ["--lengths.context=512", "--lengths.response=256"]
    done = planned(tmp_path, *options)
    assert done.returncode == 0, done.stderr[-2000:]
    *programs, verdict = done.stdout.splitlines()[1:]
    named = [line.split()[0].rstrip(":") for line in programs]
    assert re.fullmatch(rf"  fits: the largest, .+, takes \d+% of {memory} GiB a device", verdict)
    assert list(dict.fromkeys(named)) == ["prefill", "decode", "gradient", "score", "apply"]
    assert all(f"of {memory} GiB a device" in line for line in programs)


@pytest.mark.long
@needs_libtpu
def test_a_model_that_is_too_large_is_refused_before_anything_is_allocated(tmp_path):
    folder = folder_of(tmp_path / "model", REAL["Qwen3-8B"] | {"num_hidden_layers": 2})
    options = [f"--{o}" for o in PLANNED] + [f"--model.path={folder}", "--model.dtype=bfloat16", "--topology=v5e:2x2"]
    done = planned(tmp_path, *options)
    assert done.returncode == 2 and "does not fit" in done.stderr, done.stdout + done.stderr[-2000:]


PAIRS = [  # every model and every hardware once at least
    ("v5e_64", "qwen3_8b"),
    ("v5p_64", "qwen3_4b_instruct_2507"),
    ("v6e_64", "qwen3_8b"),
    ("v5p_64_experts", "qwen3_30b_a3b"),
    ("v6e_64_experts", "qwen3_30b_a3b"),
    ("v5p_64_olmo3", "olmo3_7b_think"),
    ("v6e_64_olmo3", "olmo3_7b_instruct"),
    ("h100_8", "qwen3_4b_instruct_2507"),  # eight CPU devices in place of the GPUs
    ("h100_8_experts", "qwen3_30b_a3b"),
    ("h100_8_olmo3", "olmo3_7b_think"),
]


def test_no_shipped_hardware_is_left_out():
    assert {hardware for hardware, _ in PAIRS} == {p.stem for p in (ROOT / "configs" / "hardware").glob("*.yaml")}


@pytest.mark.long
@needs_libtpu
@pytest.mark.parametrize("hardware, model", PAIRS)
def test_every_shipped_hardware_lowers_the_models_it_is_for(tmp_path, hardware, model):
    """The published widths and vocabularies, four layers deep, so that no axis is left that does not divide."""
    name = next(n for n in REAL if n.lower().replace("olmo-3", "olmo3").replace("-", "_") == model)
    folder = folder_of(
        tmp_path / "model",
        REAL[name] | {"num_hidden_layers": 4} | ({"layer_types": REAL[name]["layer_types"][:4]} if "layer_types" in REAL[name] else {}),
    )
    script = (
        "import sys; from antisd_jax import aot, config; from antisd_jax.model.settings import load_config\n"
        "from antisd_jax.model.sharding import make_mesh, use_mesh\n"
        "c = config.load(sys.argv[2:], ['model.path=' + sys.argv[1]]); m = load_config(aot.model_folder(c.model.path, 'main'))\n"
        "mesh = make_mesh(c.mesh, aot.topology_devices(c.mesh.topology)); aot.refuse_mesh(c, m, mesh)\n"
        "todo = aot.tasks(c, m, mesh)\nwith use_mesh(mesh):\n    print(len([t.lower() for t in todo]))\n"
    )
    files = [str(ROOT / "configs" / f) for f in (f"models/{model}.yaml", "methods/antisd.yaml", f"hardware/{hardware}.yaml")]
    if hardware.startswith("h100"):
        files.append(str(tmp_path / "cpus.yaml"))
        (tmp_path / "cpus.yaml").write_text("mesh: {topology: cpu:8}")
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "JAX_NUM_CPU_DEVICES": "8",
    }
    command = [sys.executable, "-c", script, str(folder), *files]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and int(done.stdout.split()[-1]) >= 5, done.stderr[-2000:]
