#!/usr/bin/env bash
# Parity, the smoke run and every benchmark on this machine's GPU, each part within ten minutes: bash launch/gpu_bench.sh [--only=decode,train] [--out=DIR] [--write]
# On a CPU, the same parts at small size: bash launch/gpu_bench.sh --size=small
set -euo pipefail
cd "$(dirname "$0")/.."
exec ${DRY_RUN:+echo} "${PYTHON:-.venv/bin/python}" benchmarks/gpu.py "$@"
