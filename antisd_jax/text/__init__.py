"""Strings: problems, chat templates, privileged prompts. No jax."""
