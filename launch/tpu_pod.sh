#!/usr/bin/env bash
# All workers of a TPU VM slice: TPU=NAME ZONE=ZONE bash launch/tpu_pod.sh configs/models/qwen3_8b.yaml … --output=/mnt/shared/run
# Every worker has this checkout with its .venv at FOLDER (~/antisd_jax), and sees the output folder under the same path.
# DRY_RUN=1 prints the command.
set -euo pipefail
exec ${DRY_RUN:+echo} gcloud compute tpus tpu-vm ssh "${TPU:?the name of the slice}" --zone="${ZONE:?its zone}" --worker=all \
  --command="cd ${FOLDER:-antisd_jax} && .venv/bin/python -m antisd_jax train ${*@Q} --processes.coordinator=auto"
