#!/usr/bin/env bash
# Finetune on a Slurm cluster: pretrain.sh with the defaults of a smaller job.
#
#   sbatch slurm/finetune.sh CONFIG.yaml [MORE.yaml] [key=value ...]
#
# Submit from the root of the repository, on a file system that all nodes share. One node of GPUs:
#
#   sbatch --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=12 --time=04:00:00 \
#       slurm/finetune.sh configs/experiment/lora.yaml
#
#SBATCH --job-name=finetune
#SBATCH --nodes=1
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
