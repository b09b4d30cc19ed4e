#!/usr/bin/env bash
# Evaluate on a Slurm cluster; preempted or out of time, it requeues itself and asks what is left.
#
#   sbatch slurm/evaluate.sh RUN --tasks all [--tensor N] [--pipeline N] [--batch N]
#
# Submit from the root of the repository, on a file system that all nodes share. One node of GPUs:
#
#   sbatch --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=12 --time=02:00:00 \
#       slurm/evaluate.sh runs/tasks --tasks all
#
#SBATCH --job-name=evaluate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --requeue
#SBATCH --signal=B:USR1@60
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out

module=tools.evaluate
# sbatch runs a copy of this file elsewhere, so its neighbours are found from where it was submitted,
# unless `python -m tools.submit` says where they are.
shared=${SEMICAUSAL_REPOSITORY:-${SLURM_SUBMIT_DIR:-.}}/slurm/launch.sh
if [[ ! -f $shared ]]; then
    echo "no $shared: run sbatch from the root of the repository" >&2
    exit 2
fi
# shellcheck source=slurm/launch.sh
source "$shared"
