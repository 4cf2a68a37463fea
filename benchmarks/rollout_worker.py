"""One engine of the rollout comparison, in whatever environment it is started: `python rollout_worker.py ENGINE MODEL_DIR`.

Orders are JSON lines on standard input: {"prompts": [[ids]], "samples": G, "lengths": [[tokens wanted, G]], "slots": S}; each is
answered by {"seconds", "tokens"} on standard output: useful tokens, which are the lengths' sum for every engine. Nothing ends by
itself: no stop token is given. ENGINE is antisd_jax, tunix or transformers; every one samples at temperature 1 in float32.
"""

import json
import os
import sys
import time


def antisd_jax(folder):
    import numpy as np

    from antisd_jax.arrays import named_key
    from antisd_jax.model import hf
    from antisd_jax.model.settings import load_config
    from antisd_jax.model.sharding import MeshConfig, make_mesh
    from antisd_jax.rollout.engine import generate
    from antisd_jax.rollout.sampling import Sampling

    c = load_config(folder)
    weights = hf.load_weights(folder, c, make_mesh(MeshConfig()))

    def run(prompts, samples, lengths, slots):
        ids = np.arange(len(prompts), dtype=np.uint32)
        numbers = np.tile(np.arange(samples, dtype=np.uint32), (len(prompts), 1))
        out, _ = generate(
            weights,
            np.array(prompts, np.int32),
            np.array([len(p) for p in prompts], np.int32),
            named_key(0, 0, "sample"),
            ids,
            numbers,
            c=c,
            responses=int(np.max(lengths)),
            sampling=Sampling(),
            stop=(),
            slots=slots,
            limits=np.array(lengths),
        )
        assert (out.lengths == np.array(lengths)).all()

    return run


class Numbers:
    """A tokenizer whose text is token ids, for engines that want one."""

    def encode(self, text, **_):
        return [int(t) for t in text.split()]

    def decode(self, ids, **_):
        return ""

    def bos_id(self):
        return 0

    def eos_id(self):
        return -5  # no token: nothing ends by itself

    def pad_id(self):
        return 0


def batches(prompts, samples, lengths, slots):
    """(prompts, tokens to generate) of each natural batch of `slots` rows: a batch runs as long as its longest row."""
    rows = [(p, n) for p, wanted in zip(prompts, lengths) for n in wanted]
    for i in range(0, len(rows), slots):
        part = rows[i : i + slots]
        yield [p for p, _ in part], max(n for _, n in part)


def tunix(folder):
    import jax
    from tunix.generate import sampler as sampling
    from tunix_model import load

    mesh, c, transformer = load(folder)
    samplers = {}

    def run(prompts, samples, lengths, slots):
        for part, longest in batches(prompts, samples, lengths, slots):
            width = max(map(len, part))
            size = width + longest
            if size not in samplers:  # its cache has one size for good: the least that holds the batch
                cache = sampling.CacheConfig(size, c.num_layers, c.num_kv_heads, c.head_dim)
                samplers[size] = sampling.Sampler(transformer, Numbers(), cache)
            texts = [" ".join(map(str, p)) for p in part]
            with jax.set_mesh(mesh):
                out = samplers[size](texts, longest, width, temperature=1.0, top_p=1.0, seed=0, return_logprobs=True)
            assert len(out.tokens) == len(part)

    return run


def transformers(folder):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(os.cpu_count())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def run(prompts, samples, lengths, slots):
        for part, longest in batches(prompts, samples, lengths, slots):
            ids = torch.tensor(part)
            with torch.no_grad():
                out = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=longest,
                    min_new_tokens=longest,
                    pad_token_id=0,
                )
            assert out.shape[1] == ids.shape[1] + longest

    return run


def main():
    engine, folder = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    run = {"antisd_jax": antisd_jax, "tunix": tunix, "transformers": transformers}[engine](folder)
    for line in sys.stdin:
        order = json.loads(line)
        start = time.perf_counter()
        run(**order)
        seconds = time.perf_counter() - start
        answers.write(json.dumps({"seconds": seconds, "tokens": sum(map(sum, order["lengths"]))}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
