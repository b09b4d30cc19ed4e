"""What a rank is before it is Python: a shell that becomes the rank's process.

Python takes seconds until it can speak, more where its files lie on a busy disk. The shell opens
the connection to the keeper and hands it on, so that a rank that dies meanwhile closes it.
"""

from typing import Final

# Neither TERM nor USR1 ends what stands between: Slurm signals all processes of a step, so that the
# ranks hear by themselves. They are deaf, too, until Python installs its handlers: a signal that
# arrives during the imports would kill a rank that has nothing to save.
DEAF: Final = 'trap "" USR1 TERM\n'

# Tried in a process of its own first: where a firewall swallows packets, bash waits for minutes.
_HEARD: Final = """\
if [[ ${SEMICAUSAL_KEEPER:-} ]]; then
    where=${SEMICAUSAL_KEEPER%:*}
    where=/dev/tcp/${where%:*}/${where##*:}
    if timeout --signal=KILL 5 bash -c ': <>"$0"' "$where" 2>/dev/null &&
        { exec {keeper}<>"$where"; } 2>/dev/null; then
        trap "" PIPE
        printf '{"secret": "%s", "rank": %d, "host": "%s", "pid": %d, "shell": true}\\n' \
            "${SEMICAUSAL_KEEPER##*:}" "${RANK:-${SLURM_PROCID:-0}}" \
            "${SEMICAUSAL_NODE:-${SLURMD_NODENAME:-$HOSTNAME}}" $$ 2>/dev/null >&"$keeper"
        trap - PIPE
        export SEMICAUSAL_KEEPER_CONNECTION=$keeper
    fi
fi
"""

RANK: Final = ("bash", "-c", DEAF + _HEARD + 'exec "$@"\n', "rank")
"""Becomes the rank that the words behind it start."""

RANK_OF_AGENT: Final = (
    *("bash", "-c", _HEARD + '"$@"; status=$?; exit $((status == 75 ? 0 : status))\n', "rank"),
)
"""Starts it, and hides from an agent that it has saved: agents take that for a fault."""
