#!/usr/bin/env bash
# One host, all of its GPUs or CPU cores: bash launch/host.sh configs/models/qwen3_8b.yaml configs/methods/antisd.yaml configs/hardware/h100_8.yaml --output=DIR
# DRY_RUN=1 prints the command. Status 75 means: asked to stop, with a checkpoint; the same command goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
exec ${DRY_RUN:+echo} "${PYTHON:-.venv/bin/python}" -m antisd_jax train "$@"
