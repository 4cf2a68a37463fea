#!/usr/bin/env bash
# SLURM, one process a GPU: sbatch --nodes=4 launch/slurm.sh configs/models/qwen3_8b.yaml … --output=/shared/run
# Submit from this checkout, whose .venv and whose output folder all nodes see. DRY_RUN=1 prints the command.
# Two minutes before its time is over, or when it is preempted, the run leaves a checkpoint; the job is queued again, and goes on from it.
#SBATCH --job-name=antisd
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
status=0
${DRY_RUN:+echo} srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-8}" \
  "${PYTHON:-.venv/bin/python}" -m antisd_jax train "$@" --processes.coordinator=auto || status=$?
[ "$status" != 75 ] || scontrol requeue "$SLURM_JOB_ID"
exit "$status"
