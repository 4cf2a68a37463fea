#!/usr/bin/env bash
# From a fresh clone to the tests. Options go to pytest: bash launch/test.sh -k gate; the long ones: bash launch/test.sh -m long
# EXTRAS=test leaves torch and libtpu out; the comparisons with it and the compilations for TPUs are then skipped, and say so.
set -euo pipefail
cd "$(dirname "$0")/.."
${PYTHON:-python3} -m venv .venv
.venv/bin/python -m pip install --quiet -r requirements.txt -e ".[${EXTRAS:-test,parity,tpu}]"
exec .venv/bin/python -m pytest "$@"
