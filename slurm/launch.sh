# What the scripts beside it share: run `python -m $module "$@"` as one task a rank, pass a warning of
# preemption on to the ranks, and requeue the job once they have saved.
#
# The ranks' side of the agreement: on SIGUSR1 or SIGTERM they finish what they are at, save, and exit
# with status 75; started again with the same arguments, they continue from there. All statuses, and
# what is done about each: docs/exit-status.md.
#
# Sourced, not run: with `--signal=B:USR1@…` Slurm warns the batch shell alone, and that is this one.

readonly STOPPED_AND_SAVED=75 # EX_TEMPFAIL: run again to continue
# Once one rank has left, the others get this long, for a slow save or to fail in their own words.
readonly SECONDS_AFTER_FIRST_EXIT=60
readonly SECONDS_BETWEEN_WARNINGS=5

fail() {
    echo "slurm/launch.sh: $*" >&2
    exit 2
}

# ---------------------------------------------------------------- what to run, and is it all there
[[ -n ${SLURM_JOB_ID:-} && -n ${SLURM_SUBMIT_DIR:-} ]] ||
    fail "submit it with sbatch, as the first lines of the script beside this one say"
cd "$SLURM_SUBMIT_DIR" || fail "this node does not see the directory $SLURM_SUBMIT_DIR"

# What each rank would refuse, said once, for a configuration that is not there.
refuse_bad_configs() {
    local argument num_configs=0
    for argument in "$@"; do
        case $argument in
        -* | *=*) ;; # an option or an override
        *.yaml | *.yml)
            [[ -f $argument ]] || fail "no configuration $argument in $SLURM_SUBMIT_DIR"
            num_configs=$((num_configs + 1))
            ;;
        *) fail "$argument is neither a .yaml file nor key=value" ;;
        esac
    done
    ((num_configs > 0)) || fail "no configuration given: name a .yaml file, such as configs/experiment/first_light.yaml"
}
[[ $module != train ]] || refuse_bad_configs "$@"

python=$SLURM_SUBMIT_DIR/.venv/bin/python
[[ -x $python ]] || python=$(type -P python3) || fail "no .venv/bin/python and no python3 here"

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

echo "job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}: $SLURM_NTASKS ranks on" \
    "$SLURM_JOB_NODELIST, $OMP_NUM_THREADS threads each, meeting at $MASTER_ADDR:$MASTER_PORT"

# ---------------------------------------------------------------- run
# Signals are ignored until Python installs its handlers, else one that arrives during the imports
# kills a rank that has nothing to save. `--cpus-per-task` is named because srun no longer inherits
# it from sbatch; `--kill-on-bad-exit=0` because a rank that saved and left is no reason to kill.
srun --label --kill-on-bad-exit=0 --wait="$SECONDS_AFTER_FIRST_EXIT" \
    --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    bash -c 'trap "" USR1 TERM; exec "$@"' rank "$python" -m "$module" "$@" &
step=$!

# Both are passed on as USR1: srun forwards that to the ranks, but on TERM it kills them instead.
# Again and again until they leave, because a warning that came during the imports was ignored.
repeating=
warn_ranks() {
    echo "job $SLURM_JOB_ID: SIG$1 received, asking the ranks to save and stop" >&2
    kill -USR1 "$step" 2>/dev/null
    [[ -z $repeating ]] || return
    while sleep "$SECONDS_BETWEEN_WARNINGS" && kill -USR1 "$step"; do :; done 2>/dev/null &
    repeating=$!
}
trap 'warn_ranks USR1' USR1
trap 'warn_ranks TERM' TERM

# `wait` returns at every trapped signal, with that signal's status: ask until the step has gone.
while kill -0 "$step" 2>/dev/null; do
    wait "$step"
done
wait "$step"
status=$?
[[ -z $repeating ]] || kill "$repeating" 2>/dev/null

# ---------------------------------------------------------------- requeue, or report
# Once the job was cancelled or already requeued its state is no longer RUNNING. A cancelled job
# must not be requeued here: Slurm would obey, and `scancel` would not end it.
if ((status == STOPPED_AND_SAVED)); then
    state=$(scontrol --oneliner show job "$SLURM_JOB_ID" | sed -n 's/.*JobState=\([^ ]*\).*/\1/p')
    if [[ $state == RUNNING ]]; then
        echo "job $SLURM_JOB_ID: saved; requeued to continue" >&2
        scontrol requeue "$SLURM_JOB_ID" && exit 0
        echo "job $SLURM_JOB_ID: not requeued; submit the same command again to continue" >&2
    fi
fi
exit "$status"
