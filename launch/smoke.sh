#!/usr/bin/env bash
# From a fresh clone to a trained policy and its report. Options go to `antisd train`: bash launch/smoke.sh --seed=1 --output=runs/smoke1
set -euo pipefail
cd "$(dirname "$0")/.."
${PYTHON:-python3} -m venv .venv
.venv/bin/python -m pip install --quiet -r requirements.txt -e .
exec .venv/bin/antisd train configs/smoke.yaml "$@"
