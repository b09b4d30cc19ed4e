"""A corpus built by a Slurm array, of which a task is killed, beside the same one built here.

    python -m tests.tools.corpus.slurm_check [SOURCE…] [--dedup minhash] [--tasks 2]

Takes what `tools.corpus build` takes, except OUT; without a SOURCE that is English documentation.
Starts a lab of two nodes, and writes out/build-slurm.json.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

import psutil

from model import torchvision_free

torchvision_free.install()

from tests.tools.corpus.making import files_of  # noqa: E402  # after install()
from tools.command import write_json  # noqa: E402  # likewise
from tools.corpus.workshop import RECORD  # noqa: E402  # likewise
from tools.lab import slurm  # noqa: E402  # likewise

REPORT: Final = Path("out", "build-slurm.json")
_SECONDS: Final = 3600.0


class Killer(threading.Thread):
    """Kills the second task of a build once it has noted a part, and is at the next one."""

    def __init__(self, out: Path) -> None:
        """Begin to wait for it.

        Args:
            out: where the build is.
        """
        super().__init__(daemon=True)
        self._out = out
        self.start()

    def run(self) -> None:
        """Look again and again until it is killed, or everything is built."""
        shares, deadline = self._out / ".building/shares.json", time.monotonic() + _SECONDS
        while time.monotonic() < deadline and not (self._out / "manifest.json").exists():
            time.sleep(0.005)
            given = json.loads(shares.read_text()) if shares.exists() else {}
            if given.get("kind") != RECORD or len(given["numbers"]) < 2:
                continue
            if (self._out / ".building" / RECORD.format(given["numbers"][1][0])).exists():
                for process in psutil.process_iter(["cmdline"]):
                    command = process.info["cmdline"] or []
                    if "--task=1" in command and str(self._out) in command:
                        process.kill()
                        return


def tasks_repeated(told: str) -> int:
    """How many tasks ended early, by what a build has told."""
    return sum(map(int, re.findall(r"^(\d+) tasks? of job \d+ ended early", told, re.MULTILINE)))


def main(arguments: list[str]) -> int:
    """Build both, compare, and write what came of it."""
    if not any(each.startswith("--tasks") for each in arguments):
        arguments = [*arguments, "--tasks=2"]
    REPORT.parent.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="lab-") as lab,
        tempfile.TemporaryDirectory(dir=REPORT.parent) as scratch,
    ):
        here, there = Path(scratch, "here").absolute(), Path(scratch, "there").absolute()
        local = [each for each in arguments if not each.startswith("--tasks")]
        record = slurm.up(Path(lab), num_nodes=2, num_cpus=2)
        try:
            seconds_here, _ = _built(here, local, {})
            killer = Killer(there)
            seconds, told = _built(there, arguments, record.environment)
            killer.join()
        finally:
            slurm.down(Path(lab))
        found = {
            "equal": files_of(here) == files_of(there),
            "tasks_repeated": tasks_repeated(told),
            "seconds": round(seconds, 1),
            "seconds_in_one_process_group": round(seconds_here, 1),
            "arguments": arguments,
        }
    write_json(REPORT, found)
    sys.stdout.write(json.dumps(found) + "\n")
    return 0 if found["equal"] and found["tasks_repeated"] else 1


def _built(out: Path, arguments: list[str], environment: dict[str, str]) -> tuple[float, str]:
    begun = time.monotonic()
    command = [sys.executable, "-m", "tools.corpus", "build", *_before(out, arguments)]
    done = subprocess.run(
        command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
    )
    sys.stderr.write(done.stderr)
    if done.returncode != 0:
        raise SystemExit(done.returncode)
    return time.monotonic() - begun, done.stderr


def _before(out: Path, arguments: list[str]) -> list[str]:
    """The place among the arguments: behind the sources, which come first."""
    sources = next((n for n, each in enumerate(arguments) if each.startswith("--")), len(arguments))
    return [*arguments[:sources], str(out), *arguments[sources:]]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
