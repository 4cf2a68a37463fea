"""The embedded task and model: Countdown problems, the tiny Qwen3 policy that ships with the package, and its making."""

from pathlib import Path

HERE = Path(__file__).parent
