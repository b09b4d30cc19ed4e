"""What the hardware of each node does while a run goes on: `RUN/hardware/NODE.jsonl`."""

import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import psutil

from parallel.host import node_name
from train.storage.appended import AppendedFile
from train.storage.record import Record
from train.watch.metrics import Count, Finite, Moment

LOOK_SECONDS: Final = 15.0
"""Between two looks; the first comes after as long."""

_ASK_SECONDS: Final = 10.0
_QUESTION: Final = (
    "nvidia-smi",
    "--query-gpu=utilization.gpu,memory.used,temperature.gpu,power.draw",
    "--format=csv,noheader,nounits",
)
_MIB_BYTES: Final = 2**20


class GpuUse(Record):
    """Of one GPU of a node; what it does not tell is None.

    Attributes:
        busy_fraction: of the last moments in which some kernel ran.
        memory_bytes: in use.
        celsius: its temperature.
        watts: that it draws.
    """

    busy_fraction: Finite | None
    memory_bytes: Finite | None
    celsius: Finite | None
    watts: Finite | None


class HardwareUse(Record):
    """Of one node since the last look.

    Attributes:
        time: wall-clock time in Unix seconds.
        node: its name.
        processor_fraction: of all cores' time.
        memory_bytes: in use, by whatever process.
        memory_fraction: of what the node has.
        read_bytes: from disks.
        written_bytes: to disks.
        sent_bytes: to other nodes and stores.
        received_bytes: likewise.
        seconds: since the last look.
        gpus: in the driver's order.
    """

    time: Moment
    node: str
    processor_fraction: Finite
    memory_bytes: Count
    memory_fraction: Finite
    read_bytes: Count
    written_bytes: Count
    sent_bytes: Count
    received_bytes: Count
    seconds: Finite
    gpus: list[GpuUse]


class Hardware:
    """Looks at this node from a thread until it is stopped; the first rank of each node has one.

    Args:
        directory: of all nodes' files.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._node = node_name()
        self._is_over = threading.Event()
        self._seen = _counted()
        psutil.cpu_percent()  # since when the next one counts
        threading.Thread(target=self._watch, name="hardware", daemon=True).start()

    def stop(self) -> None:
        """Look no more; does not wait."""
        self._is_over.set()

    def look(self) -> HardwareUse:
        """What was done since the last look."""
        before, self._seen = self._seen, _counted()
        done = {name: max(0, int(self._seen[name] - before[name])) for name in self._seen}
        memory = psutil.virtual_memory()
        return HardwareUse(
            time=time.time(),
            node=self._node,
            processor_fraction=psutil.cpu_percent() / 100,
            memory_bytes=memory.total - memory.available,
            memory_fraction=1 - memory.available / memory.total,
            read_bytes=done["read"],
            written_bytes=done["written"],
            sent_bytes=done["sent"],
            received_bytes=done["received"],
            seconds=max(0.0, self._seen["seconds"] - before["seconds"]),
            gpus=gpu_uses(),
        )

    def _watch(self) -> None:
        file: AppendedFile | None = None
        while not self._is_over.wait(LOOK_SECONDS):
            # What only watches a run says nothing of a full disk: the run itself does.
            with contextlib.suppress(OSError, ValueError, psutil.Error):
                use = self.look()
                if file is None:
                    self._directory.mkdir(exist_ok=True)
                    file = AppendedFile(self._directory / f"{self._node}.jsonl")
                file.append(use.model_dump_json().encode() + b"\n")
        if file is not None:
            file.close()


def gpu_uses() -> list[GpuUse]:
    """Of the GPUs that the driver tells of; none without one."""
    if shutil.which(_QUESTION[0]) is None:
        return []
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = subprocess.run(_QUESTION, capture_output=True, text=True, timeout=_ASK_SECONDS)
        return [gpu_use(line) for line in asked.stdout.splitlines() if line.count(",") == 3]
    return []


def gpu_use(line: str) -> GpuUse:
    """What a line of the driver's answer says."""
    busy, memory, celsius, watts = (_number(text) for text in line.split(","))
    return GpuUse(
        busy_fraction=None if busy is None else busy / 100,
        memory_bytes=None if memory is None else memory * _MIB_BYTES,
        celsius=celsius,
        watts=watts,
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # such as [N/A]
        return None


def _counted() -> Mapping[str, float]:
    """All that this node has read, written, sent and received since it was started."""
    disks, nets = psutil.disk_io_counters(), psutil.net_io_counters()
    return {
        "seconds": time.monotonic(),
        "read": 0 if disks is None else disks.read_bytes,
        "written": 0 if disks is None else disks.write_bytes,
        "sent": nets.bytes_sent,
        "received": nets.bytes_recv,
    }
