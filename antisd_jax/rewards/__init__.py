"""Graders. Nothing here imports jax: they run in plain child processes."""
