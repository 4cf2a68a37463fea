"""Eight virtual CPU devices for every test, set before jax starts; and a tiny random policy to share."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tests compile much and compute little; and on a busy machine eight virtual devices may meet late. XLA_FLAGS= runs them as users do.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_collective_call_terminate_timeout_seconds=600")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # what one test process compiled, the others and their children need not
    COMPILED = tempfile.TemporaryDirectory(prefix="antisd-compiled-")
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": COMPILED.name, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)

from antisd_jax.model.parameters import LayerKind, ModelConfig, init  # noqa: E402
from antisd_jax.model.rope import Rope  # noqa: E402
from antisd_jax.model.sharding import MeshConfig, make_mesh  # noqa: E402

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"


def sharpened(weights):
    """Initial weights scaled up, so that distributions are far from flat and every part matters."""
    weights = jax.tree.map(lambda x: x * 1.3 if x.ndim < 3 or (x == 1).all() else x * 4, weights)
    wider = None if weights.unembedding is None else weights.unembedding * 12
    return weights.replace(embedding=weights.embedding * 12, unembedding=wider)


@pytest.fixture(scope="session")
def model():
    kinds = (LayerKind(Rope(1e4)),)
    return ModelConfig(vocab=40, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, feed_forward=48, kinds=kinds)


@pytest.fixture(scope="session")
def weights(model):
    return sharpened(init(model, 7))


@pytest.fixture(scope="session")
def mesh1():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def pytest_collection_modifyitems(items):
    """The longest tests first, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: "test_processes" not in item.nodeid)


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """Each compiled program holds memory maps, of which Linux grants a process 65,530: a whole run of tests would use them up."""
    yield
    jax.clear_caches()
