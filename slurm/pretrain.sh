#!/usr/bin/env bash
# Pretrain on a Slurm cluster; preempted or out of time, it saves, requeues itself and continues.
#
#   sbatch slurm/pretrain.sh CONFIG.yaml [MORE.yaml] [key=value ...]
#
# Submit from the root of the repository, on a file system that all nodes share. The defaults below
# need no GPU; flags given to sbatch replace them. Eight nodes of eight GPUs:
#
#   sbatch --nodes=8 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=12 --time=24:00:00 \
#       slurm/pretrain.sh configs/experiment/metalm_1p3b.yaml configs/cluster/h100x8.yaml
#
# Without a cluster: eval "$(python -m tools.lab slurm up)" makes one of two nodes on this machine.
#
#SBATCH --job-name=pretrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out

module=train
# sbatch runs a copy of this file elsewhere, so its neighbours are found from where it was submitted,
# unless `python -m tools.submit` says where they are.
shared=${SEMICAUSAL_REPOSITORY:-${SLURM_SUBMIT_DIR:-.}}/slurm/launch.sh
if [[ ! -f $shared ]]; then
    echo "no $shared: run sbatch from the root of the repository" >&2
    exit 2
fi
# shellcheck source=slurm/launch.sh
source "$shared"
