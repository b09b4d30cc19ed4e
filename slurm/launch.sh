# What the scripts beside it share: see that all is there, say where the ranks meet, and have
# `python -m tools.keep` run `python -m $module "$@"` on every rank.
#
# The ranks' side of the agreement: on SIGUSR1 or SIGTERM they finish what they are at, save, and exit
# with status 75; started again with the same arguments, they continue from there. All statuses, and
# what is done about each: docs/exit-status.md.
#
# Sourced, not run: with `--signal=B:USR1@…` Slurm warns the batch shell alone, and that becomes the
# keeper.

fail() {
    echo "slurm/launch.sh: $*" >&2
    exit 2
}

# ---------------------------------------------------------------- what to run, and is it all there
[[ -n ${SLURM_JOB_ID:-} && -n ${SLURM_SUBMIT_DIR:-} ]] ||
    fail "submit it with sbatch, as the first lines of the script beside this one say"
asked="" # before there is anybody to pass it on to
trap 'asked=USR1' USR1
trap 'asked=TERM' TERM
cd "$SLURM_SUBMIT_DIR" || fail "this node does not see the directory $SLURM_SUBMIT_DIR"

# The repository: where this was submitted, unless `python -m tools.submit` says where it is.
repository=${SEMICAUSAL_REPOSITORY:-$SLURM_SUBMIT_DIR}
python=$repository/.venv/bin/python
[[ -x $python ]] || python=$(type -P python3) || fail "no .venv/bin/python in $repository and no python3 here"
if [[ ! $repository -ef . ]]; then
    # What lies where it was submitted is not to be taken for a module of ours.
    export PYTHONSAFEPATH=1 PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH}
fi

# ---------------------------------------------------------------- where the ranks meet
read -r first_node < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# A node's address, not its name: Slurm's names need not be known to the system's resolver.
MASTER_ADDR=$(scontrol --oneliner show node "$first_node" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
[[ -n $MASTER_ADDR && $MASTER_ADDR != "(null)" ]] || MASTER_ADDR=$first_node
# From the job's id, so that jobs which share a node do not meet; kept below the kernel's own range.
MASTER_PORT=$((10000 + SLURM_JOB_ID % 7000))
OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
PYTHONUNBUFFERED=1
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS PYTHONUNBUFFERED
# sbatch hands on the submitter's environment; with these in it every rank would take itself for one.
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE

# ---------------------------------------------------------------- what `cluster:` says of the job
# Behind the above, which it may replace; mistakes in it are told once.
launcher=srun inside="" scratch="" environment=() arguments=("$@")
if [[ $module == train ]]; then
    settings=$("$python" -m tools.submit.job "$@") || exit
    set -- # a file that a line of cluster.setup sources would take them for its own
    eval "$settings" || fail "bash cannot read what the section cluster: gives"
    set +efu +o pipefail # what such a line may have set for itself
    cd "$SLURM_SUBMIT_DIR" || fail "cluster.setup: the directory $SLURM_SUBMIT_DIR is gone"
fi
[[ -z $scratch ]] || srun --ntasks-per-node=1 --ntasks="$SLURM_JOB_NUM_NODES" mkdir -p "$scratch" ||
    fail "cluster.scratch: $scratch cannot be made on every node"

# shellcheck disable=SC2016 # as the ranks have these variables
env "${environment[@]}" bash -c 'echo "job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}: \
$SLURM_NTASKS ranks on $SLURM_JOB_NODELIST, $OMP_NUM_THREADS threads each, meeting at \
$MASTER_ADDR:$MASTER_PORT"'

# ---------------------------------------------------------------- run
# The keeper starts the ranks, starts them again where that helps, and requeues the job once they
# have saved. Signals are ignored until it listens, else one that arrives earlier ends it.
# KEEP_OPTIONS, such as --warm or --limit-seconds=3600, come from whoever submits.
# shellcheck disable=SC2086 # several words
(trap '' USR1 TERM && exec env "${environment[@]}" "$python" -m tools.keep --launcher "$launcher" --inside="$inside" ${KEEP_OPTIONS:-} "$module" "${arguments[@]}") &
keeper=$!

# Again and again until it leaves, because a warning that came during its imports was ignored.
pass_on() {
    while kill -"$1" "$keeper" 2>/dev/null; do sleep 1; done &
}
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM
[[ -z $asked ]] || pass_on "$asked"

# `wait` returns at every trapped signal, with that signal's status: ask until the keeper has gone.
while kill -0 "$keeper" 2>/dev/null; do
    wait "$keeper"
done
wait "$keeper"
