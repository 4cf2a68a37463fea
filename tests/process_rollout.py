"""One of several processes that sample together: `python process_rollout.py PORT COUNT NUMBER OUTPUT.npz`. Started by test_rollout.py."""

import sys

import jax

port, count, number, output = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", int(count), int(number))

import numpy as np  # noqa: E402
from conftest import sharpened  # noqa: E402
from test_rollout import IDS, PROMPTS, G, arrays  # noqa: E402

from antisd_jax.arrays import named_key  # noqa: E402
from antisd_jax.model.parameters import LayerKind, ModelConfig, declare, init  # noqa: E402
from antisd_jax.model.rope import Rope  # noqa: E402
from antisd_jax.model.sharding import MeshConfig, make_mesh, param_shardings, use_mesh  # noqa: E402
from antisd_jax.rollout.engine import generate  # noqa: E402
from antisd_jax.rollout.sampling import Sampling  # noqa: E402

jax.config.update("jax_num_cpu_devices", 2)  # conftest wants eight
assert len(jax.local_devices()) == 2
kinds = (LayerKind(Rope(1e4), 24), LayerKind(Rope(1e4)))
model = ModelConfig(vocab=40, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, feed_forward=48, kinds=kinds)
mesh = make_mesh(MeshConfig(data=-1, fsdp=1, tensor=2))
host = jax.tree.map(np.asarray, sharpened(init(model, 7)))
placed = jax.jit(lambda x: x, out_shardings=param_shardings(mesh, declare(model)))(host)
assert not jax.tree.leaves(placed)[0].is_fully_addressable
tokens, lengths = arrays(PROMPTS)
samples = np.tile(np.arange(G), (len(PROMPTS), 1))
how = dict(c=model, responses=130, sampling=Sampling(1.5), stop=(0,), slots=8)
with use_mesh(mesh):
    out, tally = generate(placed, tokens, lengths, named_key(0, 1, "sample"), IDS, samples, **how)
np.savez(output, tokens=out.tokens, lengths=out.lengths, logprobs=out.logprobs, stopped=out.stopped)
