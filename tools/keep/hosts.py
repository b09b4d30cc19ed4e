"""Hosts without Slurm: `--hostfile FILE` names them, as DeepSpeed does, and ssh reaches them.

    host1 slots=8
    host2 slots=8

All see this directory and the interpreter at the same paths. What the ranks' environment holds goes
over ssh's standard input: it is shown to no other user of a host.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from typing import Final

from parallel.host import NODE
from tools.keep import looking, on_host
from tools.keep.agents import agent
from tools.keep.looking import Look
from tools.keep.nodes import called
from tools.lab.daemons import free_ports
from train.errors import UserError

_LINE: Final = re.compile(r"(\S+)\s+slots=([1-9][0-9]{0,5})")
_SSH: Final = (
    # Whose key is asked for by hand is not reached; a host that is gone is noticed.
    *("-T", "-oBatchMode=yes", "-oServerAliveInterval=5", "-oServerAliveCountMax=4"),
    "-oConnectTimeout=20",
)
_KILL_SECONDS: Final = 30.0


class Hosts:
    """Hosts that ranks run on.

    Args:
        file: names them, each with its ranks.
        ssh: words that begin a command on one of them.

    Attributes:
        slots: ranks on each host, in order.

    Raises:
        UserError: the file cannot be read, or is none.
    """

    def __init__(self, file: str, *, ssh: Sequence[str]) -> None:
        self.slots: dict[str, int] = {}
        self._ssh = ssh
        try:
            lines = Path(file).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--hostfile: {file} cannot be read ({error}): name a file") from None
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.strip().startswith("#"):
                continue
            found = _LINE.fullmatch(line.strip())
            if found is None:
                raise UserError(
                    f"--hostfile: line {number} of {file} is {line.strip()!r}: write it such as "
                    "host1 slots=8"
                )
            if found[1] in self.slots:
                raise UserError(f"--hostfile: {file} names {found[1]} twice: leave one out")
            self.slots[found[1]] = int(found[2])
        if not self.slots:
            raise UserError(f"--hostfile: {file} names no host: write lines such as host1 slots=8")

    @property
    def first(self) -> str:
        """Address of the first host, at which ranks meet."""
        return self._address_of(next(iter(self.slots)))

    @property
    def here(self) -> str:
        """Address of this host by which the others reach it.

        Raises:
            UserError: there is no way to one of them.
        """
        own: list[str] = []
        for host in self.slots:
            address = self._address_of(host)
            try:
                family, _, _, _, place = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
                with socket.socket(family, socket.SOCK_DGRAM) as probe:
                    probe.connect(place)  # sends nothing
                    own.append(probe.getsockname()[0])
            except OSError as error:
                raise UserError(
                    f"--hostfile: {host} is at no known address ({error}): name hosts as ssh does"
                ) from None
        # Over loopback only what is here can reach it.
        return next((each for each in own if not each.startswith(("127.", "::1"))), own[0])

    def command(self, host: str, *words: str) -> list[str]:
        """How words are run on a host, in this directory."""
        path = os.environ.get("PYTHONPATH")
        before = ["env", f"PYTHONPATH={path}"] if path else []
        line = f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join([*before, *words])}"
        return [*self._ssh, *_SSH, host, line]

    def _address_of(self, host: str) -> str:
        """What a name stands for in ssh's configuration; the name itself where it does not say."""
        shown = called(*self._ssh, "-G", host) or ""
        found = re.search(r"^hostname (\S+)$", shown, re.MULTILINE)
        return host if found is None else found[1]


class HostRanks:
    """Ranks on several hosts, which an agent on each starts.

    Args:
        command: that each runs.
        launcher: of `tools.keep.agents.AGENTS`.
        hosts: on which they run.
        inside: words that enter a container.
        environment: of all.
    """

    knows_each = False

    def __init__(
        self,
        command: Sequence[str],
        *,
        launcher: str,
        hosts: Hosts,
        inside: Sequence[str],
        environment: Mapping[str, str],
    ) -> None:
        self.num_ranks = sum(hosts.slots.values())
        self._hosts = hosts
        self._inside = inside
        self._agents: dict[str, Popen[bytes]] = {}
        meeting, port = hosts.first, free_ports(1)[0]
        for host in hosts.slots:
            script = agent(
                launcher,
                command,
                inside=inside,
                slots=hosts.slots,
                host=meeting,
                port=port,
                node=host,
            )
            started = Popen(
                hosts.command(host, sys.executable, "-m", on_host.__name__),
                stdin=PIPE,
                start_new_session=True,
            )
            self._agents[host] = started
            given = {"script": script, "environment": {**environment, NODE: host}}
            self._say(started, json.dumps(given).encode() + b"\n")

    def statuses(self) -> dict[int, int]:
        """That of its host's agent for each rank, once that has ended."""
        found: dict[int, int] = {}
        first = 0
        for host, count in self._hosts.slots.items():
            if (status := self._agents[host].poll()) is not None:
                found |= dict.fromkeys(range(first, first + count), status)
            first += count
        return found

    def looks(self, processes: Mapping[int, tuple[str, int]]) -> dict[int, Look]:
        """What ranks are found at, by a look on each host; without those that do not answer."""

        def asked_on(host: str, arguments: Sequence[str]) -> str | None:
            words = [*self._inside, sys.executable, "-m", looking.__name__, *arguments]
            return called(*self._hosts.command(host, *words), seconds=looking.LOOK_SECONDS)

        return looking.looks_on(processes, asked_on)

    @property
    def all_ended(self) -> bool:
        """Whether no agent runs any more."""
        return all(each.poll() is not None for each in self._agents.values())

    def ask(self) -> None:
        """Send SIGUSR1 to all that the agents have started."""
        for each in self._agents.values():
            self._say(each, on_host.ASK)

    def kill(self, are_gone: Callable[[], bool] = lambda: False) -> None:
        """Kill all that the agents have started."""
        for each in self._agents.values():
            self._say(each, on_host.KILL)
        until = time.monotonic() + _KILL_SECONDS
        while not self.all_ended and time.monotonic() < until and not are_gone():
            time.sleep(0.1)
        for each in self._agents.values():
            with contextlib.suppress(TimeoutExpired):
                each.wait(timeout=1.0)
            if each.poll() is None:  # of a host that does not answer
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(each.pid, signal.SIGKILL)
                each.wait()
            if each.stdin is not None:
                with contextlib.suppress(OSError):
                    each.stdin.close()

    def _say(self, started: Popen[bytes], words: bytes) -> None:
        assert started.stdin is not None, "it was asked for"
        with contextlib.suppress(OSError):
            started.stdin.write(words)
            started.stdin.flush()
