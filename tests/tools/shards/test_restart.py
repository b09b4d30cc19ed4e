"""A build that is killed goes on where it was, and builds what it would have built."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from tests import warm
from tests.tools.shards import work
from tests.tools.shards.making import (
    SHORT,
    build,
    build_status,
    files_of,
    passages,
    refusal,
    write_lines,
)
from tools.shards import pool
from tools.shards.workshop import Workshop
from train.errors import DataError

SMALL_PARTS = ("--part-mebibytes=0.0015", "--dedup=minhash")


FORK = multiprocessing.get_context("fork")
"""A copy of this process builds alone: it imports nothing again and uses no threads."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    texts = passages(60)
    return write_lines(tmp_path / "a.jsonl", [{"text": text} for text in [*texts, *texts[:9]]])


def build_until_killed(source: Path, out: Path, tokenizer: Path, deliveries: int) -> None:
    """Runs in a process of its own, which a signal ends before or after delivering a file."""
    real = Workshop.deliver_to
    left = deliveries

    def deliver_to(self: Workshop, directory: Path) -> Callable[[str, Path | bytes], None]:
        deliver = real(self, directory)

        def counted(name: str, content: Path | bytes) -> None:
            nonlocal left
            left -= 1
            if left % 2:
                deliver(name, content)
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            if not left % 2:
                deliver(name, content)

        return counted

    Workshop.deliver_to = deliver_to
    status = build_status(source, *SMALL_PARTS, out=out, tokenizer=tokenizer)
    os._exit(status)


def test_killed_again_and_again(tmp_path: Path, tokenizer: Path, source: Path) -> None:
    whole = build(source, *SMALL_PARTS, out=tmp_path / "whole", tokenizer=tokenizer)
    out = tmp_path / "out"
    status: int | None = -signal.SIGKILL
    num_killed = 0
    finished: dict[str, int] = {}
    # More than a part takes, and a number that hits other files each time.
    while status == -signal.SIGKILL:
        process = FORK.Process(
            target=build_until_killed, args=(source, out, tokenizer, 14 + num_killed % 3)
        )
        process.start()
        process.join(60)
        status = process.exitcode
        num_killed += status == -signal.SIGKILL
        if status != 0:
            # As where the signal comes between writing a small file and giving it its name.
            (out / "train").mkdir(exist_ok=True)
            (out / "train/.part-00000.shard-00000.lengths.npy.tmp-00").write_bytes(b"half")
        records = out / ".building/parts"
        times = {path.name: path.stat().st_mtime_ns for path in records.glob("*.json")}
        if status != 0:
            assert finished.items() <= times.items(), "a finished part was built again"
        finished = times

    assert status == 0
    assert num_killed >= 5
    assert files_of(out) == files_of(whole)


def test_the_whole_command_killed_with_its_workers(
    tmp_path: Path, tokenizer: Path, source: Path
) -> None:
    write_lines(source, [{"text": text} for text in passages(4000)])
    whole = build(source, "--part-mebibytes=0.02", out=tmp_path / "whole", tokenizer=tokenizer)
    out = tmp_path / "out"
    places = ["build", str(source), str(out), "--tokenizer", str(tokenizer)]
    flags = [*SHORT, "--workers", "2", "--part-mebibytes=0.02"]
    command = subprocess.Popen(
        [sys.executable, "-m", "tools.shards", *places, *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=warm.REPOSITORY,
    )
    records = out / ".building/parts"
    deadline = time.monotonic() + 90
    while len(list(records.glob("*.json"))) < 4:
        assert command.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    family = psutil.Process(command.pid).children(recursive=True)
    command.kill()
    command.wait(30)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert len(family) >= 3, "two workers and the server that they come from"
    assert alive == [], "workers live on"
    assert not (out / "manifest.json").exists()
    done = shard_times(out, [path.stem for path in records.glob("*.json")])

    build(source, "--part-mebibytes=0.02", out=out, tokenizer=tokenizer)

    assert files_of(out) == files_of(whole)
    assert len(done) >= 4
    assert done.items() <= shard_times(out, ["?????"]).items(), "finished shards were written again"


def shard_times(corpus: Path, parts: Sequence[str]) -> dict[str, int]:
    """When shards of parts were written."""
    return {
        path.name: path.stat().st_mtime_ns
        for part in parts
        for path in (corpus / "train").glob(f"part-{part}.*.mds")
    }


def test_other_arguments_are_refused_with_what_differs(
    tmp_path: Path, tokenizer: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = source.read_text()
    source.write_text(lines + "{\n")
    refusal(capsys, source, out=tmp_path / "out", tokenizer=tokenizer)
    assert (tmp_path / "out/.building").exists()

    other = refusal(
        capsys, source, "--validation=0.3", "--text-field=t", out=tmp_path / "out",
        tokenizer=tokenizer,
    )  # fmt: skip
    assert "holds an unfinished corpus of other arguments or inputs" in other
    assert 'text_field "text", now "t"; validation 0.2, now 0.3' in other

    build(source, "--skip-bad=1", out=tmp_path / "out", tokenizer=tokenizer)
    source.write_text(lines)
    changed = refusal(capsys, source, out=tmp_path / "out", tokenizer=tokenizer)
    assert "holds a corpus of other arguments or inputs" in changed
    assert f"sources[0].bytes {len(lines) + 2}, now {len(lines)}" in changed


def test_a_finished_corpus_is_not_built_again(
    tmp_path: Path, tokenizer: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = build(source, out=tmp_path / "out", tokenizer=tokenizer)
    before = files_of(out)
    # As where the process was killed between the commit and clearing up.
    (out / ".building/parts").mkdir(parents=True)
    (out / ".building/recipe.json").write_text(json.dumps({}))

    build(source, out=out, tokenizer=tokenizer)

    assert "is already built" in capsys.readouterr().err
    assert files_of(out) == before


def test_two_builds_at_once_do_not_meet(
    tmp_path: Path, tokenizer: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Workshop(str(tmp_path / "out")).lock():
        told = refusal(capsys, source, out=tmp_path / "out", tokenizer=tokenizer)
    assert "Another process is building" in told


def test_an_input_that_changes_meanwhile_is_noticed(
    tmp_path: Path, tokenizer: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tools.shards import build as building

    real = building.cut

    def cut_then_change(*arguments: object, **options: object) -> object:
        plan = real(*arguments, **options)  # type: ignore[arg-type]
        source.write_text(source.read_text() + '{"text": "more"}\n')
        return plan

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "cut", cut_then_change)
        told = refusal(capsys, source, out=tmp_path / "out", tokenizer=tokenizer)
    assert "had" in told
    assert "when the build began" in told


def test_a_killed_worker_is_told(processes: None) -> None:
    with pytest.raises(DataError, match="A worker process was killed, perhaps because memory"):
        list(pool.spread(range(8), work.end_abruptly, workers=2, report=lambda *_: None))


def test_errors_and_counts_come_from_workers(processes: None) -> None:
    counted = [0, 0, 0]

    def report(*numbers: int) -> None:
        for place, number in enumerate(numbers):
            counted[place] += number

    done = dict(pool.spread(range(5), work.count, workers=2, report=report))
    assert done == {task: task * task for task in range(5)}
    assert counted == [50, 5, 10]
    with pytest.raises(DataError, match="the fifth is bad"):
        list(pool.spread(range(8), work.count, workers=2, report=report))
