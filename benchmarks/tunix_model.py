"""Tunix's Qwen3 from a Hugging Face folder; imported by the workers in Tunix's own environment."""

import json
import os


def load(folder):
    """(mesh, its numbers, the model in float32)."""
    import jax
    import jax.numpy as jnp
    from tunix.models.qwen3 import model, params

    s = json.load(open(os.path.join(folder, "config.json")))
    c = model.ModelConfig(
        num_layers=s["num_hidden_layers"],
        vocab_size=s["vocab_size"],
        embed_dim=s["hidden_size"],
        hidden_dim=s["intermediate_size"],
        num_heads=s["num_attention_heads"],
        head_dim=s["head_dim"],
        num_kv_heads=s["num_key_value_heads"],
        rope_theta=int(s["rope_parameters"]["rope_theta"] if "rope_parameters" in s else s["rope_theta"]),
        norm_eps=s["rms_norm_eps"],
        use_tied_embedding=s["tie_word_embeddings"],
    )
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        return mesh, c, params.create_model_from_safe_tensors(folder, c, mesh, dtype=jnp.float32)
