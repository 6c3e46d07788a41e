#!/bin/bash
# Workers on a Slurm cluster for a `sluice serve` that the nodes can reach:
#
#     SLUICE_URL=http://front:8188 SLUICE_TOKEN=... sbatch --array=1-8 examples/slurm.sh
#
# Each task of the array is one worker with one GPU. A worker that is preempted is warned by SIGTERM, finishes its job
# or gives it back, and is queued again by Slurm.
#SBATCH --job-name=sluice
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@60
set -eu
exec srun sluice work "${SLUICE_URL:?}" --token "${SLUICE_TOKEN:?}" --name "$(hostname)-${SLURM_JOB_ID}" \
    --base-directory "${SLUICE_BASE:-$HOME/sluice}" --grace 50
