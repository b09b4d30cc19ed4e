"""Two hosts for tests, on this one: Debian's sshd at two loopback addresses, nobody's ~/.ssh."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from tools.lab.daemons import find_program, free_ports

NAMES = {"one": "127.0.0.2", "two": "127.0.0.3"}
INSTALL_HINT = "apt-get update && apt-get install -y --no-install-recommends openssh-server"


@dataclass(frozen=True)
class TwoHosts:
    """Hosts by the names `one` and `two`.

    Attributes:
        hostfile: names them, with a rank each.
        ssh: words that reach them.
    """

    hostfile: Path
    ssh: str


@contextlib.contextmanager
def two_hosts(directory: Path) -> Generator[TwoHosts]:
    """Both hosts while the context lasts.

    Args:
        directory: of their keys, settings and logs.

    Raises:
        LabError: sshd is not installed.
    """
    sshd = find_program("sshd", install_hint=INSTALL_HINT)
    directory.mkdir()
    for name in ("host_key", "key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True
        )
    shutil.copy(directory / "key.pub", directory / "authorized")
    [port] = free_ports(1)
    if os.getuid() == 0:  # where sshd puts those who have not shown a key; its service makes it
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    hosts = directory / "hosts"
    hosts.write_text("".join(f"{name} slots=1\n" for name in NAMES))
    config = directory / "ssh_config"
    lines = [f"Port {port}", f"User {getpass.getuser()}", f"IdentityFile {directory / 'key'}"]
    lines += ["IdentitiesOnly yes", "StrictHostKeyChecking yes", "LogLevel ERROR"]
    lines += [f"UserKnownHostsFile {directory / 'known'}", "GlobalKnownHostsFile none"]
    text = "".join(f"Host {name}\n  HostName {address}\n" for name, address in NAMES.items())
    config.write_text(text + "Host *\n" + "".join(f"  {line}\n" for line in lines))
    key = (directory / "host_key.pub").read_text()
    known = (f"[{address}]:{port} {key}" for address in NAMES.values())
    (directory / "known").write_text("".join(known))
    servers = [_started(sshd, directory, name, port) for name in NAMES]
    try:
        for server, address in zip(servers, NAMES.values(), strict=True):
            _wait_for(server, address, port, directory)
        yield TwoHosts(hostfile=hosts, ssh=f"ssh -F {config}")
    finally:
        for server in servers:
            server.kill()
            server.wait()


def _started(sshd: str, directory: Path, name: str, port: int) -> subprocess.Popen[bytes]:
    settings = directory / f"sshd_{name}"
    settings.write_text(
        f"ListenAddress {NAMES[name]}\nPort {port}\nHostKey {directory / 'host_key'}\n"
        f"AuthorizedKeysFile {directory / 'authorized'}\nPidFile none\nUsePAM no\n"
        # pytest's directories are below one that others can write to.
        "StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "PermitRootLogin prohibit-password\nAllowTcpForwarding no\nX11Forwarding no\n"
    )
    with (directory / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            [sshd, "-D", "-e", "-f", settings], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def _wait_for(server: subprocess.Popen[bytes], address: str, port: int, directory: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        with socket.socket() as tried:
            if tried.connect_ex((address, port)) == 0:
                return
        logs = "\n".join(path.read_text() for path in directory.glob("*.log"))
        assert server.poll() is None, logs
        assert time.monotonic() < deadline, logs
        time.sleep(0.05)
