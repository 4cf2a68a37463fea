"""What the published models' config.json say (facts), and how to shrink one without touching what makes its family."""

QWEN3_8B = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3_4B_2507 = QWEN3_8B | {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "max_position_embeddings": 262144,
    "rope_theta": 5000000,
    "tie_word_embeddings": True,
}
QWEN3_30B_A3B = QWEN3_8B | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "decoder_sparse_step": 1,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}
OLMO3_7B = {
    "architectures": ["Olmo3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "eos_token_id": 100257,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8,
    "max_position_embeddings": 65536,
    "model_type": "olmo3",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pad_token_id": 100277,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "attention_factor": 1.2079441541679836,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "yarn",
    },
    "rope_theta": 500000,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": False,
    "vocab_size": 100278,
}
REAL = {
    "Qwen3-8B": QWEN3_8B,
    "Qwen3-4B-Instruct-2507": QWEN3_4B_2507,
    "Olmo-3-7B-Instruct": OLMO3_7B,
    "Olmo-3-7B-Think": OLMO3_7B,
    "Qwen3-30B-A3B": QWEN3_30B_A3B,
}
SMALL = {"hidden_size": 64, "num_attention_heads": 8, "intermediate_size": 96, "vocab_size": 96, "bos_token_id": None, "eos_token_id": 0}
SMALL |= {"pad_token_id": 0}


def small(raw: dict, **changes) -> dict:
    """The same RoPE, YaRN factors, norms, head layout and routing rule over few and narrow layers.

    Olmo-3's window and original context are scaled down with it, so that short rows pass both.
    """
    heads = {"num_key_value_heads": max(2, 8 * raw["num_key_value_heads"] // raw["num_attention_heads"])}
    out = raw | SMALL | heads | {"num_hidden_layers": 4}
    if "head_dim" in raw:
        out["head_dim"] = 16
    if raw["model_type"] == "qwen3_moe":
        out |= {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 48}
    if raw["model_type"] == "olmo3":
        scaling = raw["rope_scaling"] | {"original_max_position_embeddings": 64}
        out |= {"layer_types": raw["layer_types"][:4], "sliding_window": 24, "rope_scaling": scaling, "max_position_embeddings": 512}
    return out | changes
