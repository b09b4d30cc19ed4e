#!/usr/bin/env bash
# Build a corpus on a Slurm cluster; preempted or out of time, it requeues itself and goes on.
#
#   sbatch slurm/build.sh SOURCE... OUT [--tokenizer FILE] [...]        # as `tools.corpus build`
#
# Submit from the root of the repository, on a file system that all nodes share. One node:
#
#   sbatch --cpus-per-task=64 --mem=200G --time=12:00:00 slurm/build.sh my/texts s3://bucket/corpus
#
# Many: the job waits while an array does the work, each task of it with this job's number of CPUs:
#
#   sbatch slurm/build.sh my/texts s3://bucket/corpus --tasks 64 --sbatch="--mem=8G"
#
#SBATCH --job-name=build
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --requeue
#SBATCH --signal=B:USR1@60
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out

module=tools.corpus
# sbatch runs a copy of this file elsewhere, so its neighbours are found from where it was submitted,
# unless `python -m tools.submit` says where they are.
shared=${SEMICAUSAL_REPOSITORY:-${SLURM_SUBMIT_DIR:-.}}/slurm/launch.sh
if [[ ! -f $shared ]]; then
    echo "no $shared: run sbatch from the root of the repository" >&2
    exit 2
fi
set -- build --workers "${SLURM_CPUS_PER_TASK:-1}" "$@"
# shellcheck source=slurm/launch.sh
source "$shared"
