"""antisd_jax: GRPO with the AntiSD per-token term, on one JAX mesh."""

__version__ = "0.1.0"
