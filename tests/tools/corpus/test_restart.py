"""A build that is killed goes on where it was, and builds what it would have built."""

import io
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from tests import warm
from tests.tools.corpus import work
from tests.tools.corpus.making import (
    SHORT,
    build,
    build_status,
    files_of,
    passages,
    picture,
    refusal,
    write_lines,
)
from tools import progress
from tools.corpus import inputs, pool
from tools.corpus.__main__ import main
from tools.corpus.progress import bar
from tools.corpus.workshop import Workshop
from train.errors import DataError
from train.storage.place import Place

SMALL_PARTS = ("--part-mebibytes=0.0015", "--dedup=minhash")


FORK = multiprocessing.get_context("fork")
"""A copy of this process builds alone: it imports nothing again and uses no threads."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    texts = passages(60)
    return write_lines(tmp_path / "a.jsonl", [{"text": text} for text in [*texts, *texts[:9]]])


def build_until_killed(source: Path, out: Path, tokenizer: Path, deliveries: int) -> None:
    """Runs in a process of its own, which a signal ends before or after delivering a file."""
    real = Workshop.deliver
    left = deliveries

    def deliver(self: Workshop, directory: Place, name: str, content: Path | bytes) -> None:
        nonlocal left
        left -= 1
        if left % 2:
            real(self, directory, name, content)
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if not left % 2:
            real(self, directory, name, content)

    Workshop.deliver = deliver
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
            target=build_until_killed, args=(source, out, tokenizer, 30 + num_killed % 3)
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
        [sys.executable, "-m", "tools.corpus", *places, *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=warm.REPOSITORY,
    )
    records = out / ".building/parts"
    deadline = time.monotonic() + 300
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
    cut = "--part-mebibytes=0.002"
    refusal(capsys, source, cut, out=tmp_path / "out", tokenizer=tokenizer)
    assert list((tmp_path / "out/.building/parts").glob("*.json"))

    other = refusal(
        capsys, source, cut, "--validation=0.3", "--text-field=t", out=tmp_path / "out",
        tokenizer=tokenizer,
    )  # fmt: skip
    assert "holds an unfinished corpus of other arguments or inputs" in other
    assert 'text_field "text", now "t"; validation 0.2, now 0.3' in other

    build(source, cut, "--skip-bad=1", out=tmp_path / "out", tokenizer=tokenizer)
    told = capsys.readouterr().err
    assert re.search(r"going on; [1-9]\d* of \d+ parts are finished already", told)
    source.write_text(lines)
    changed = refusal(capsys, source, cut, out=tmp_path / "out", tokenizer=tokenizer)
    assert "a corpus of other arguments or inputs (the files of source a changed). " in changed
    second = write_lines(tmp_path / "b.jsonl", [{"text": "the bus"}])
    more = refusal(capsys, source, second, cut, out=tmp_path / "out", tokenizer=tokenizer)
    assert "(sources a, now a, b). " in more


def test_files_that_change_are_noticed(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "seen"
    place.mkdir()
    for number in range(12):
        (place / f"{number}.png").write_bytes(picture(number))
        (place / f"{number}.txt").write_text(f"a page of {number}")
    large = write_lines(tmp_path / "large.jsonl", [{"text": "the bus " * 99, "x": "abc"}] * 1500)
    assert large.stat().st_size > inputs.HASHED_BYTES
    out = build(place, large, "--shard-mebibytes=1", out=tmp_path / "out", tokenizer=tokenizer)

    def built_again() -> str:
        capsys.readouterr()
        status = build_status(place, large, "--shard-mebibytes=1", out=out, tokenizer=tokenizer)
        told = capsys.readouterr().err
        assert status == (0 if "is already built" in told else 2)
        return told

    def rewrite(path: Path, old: bytes, new: bytes, *, keep_time: bool = True) -> None:
        times = path.stat()
        path.write_bytes(path.read_bytes().replace(old, new))
        if keep_time:
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    assert "is already built" in built_again()
    os.utime(place / "3.png")
    assert "is already built" in built_again(), "small files are what they hold"
    rewrite(place / "3.txt", b"a page", b"on page")
    assert "(the files of source seen changed)" in built_again()
    rewrite(place / "3.txt", b"on page", b"a page")
    rewrite(place / "3.txt", b"3", b"4")
    assert "(the files of source seen changed)" in built_again(), "of the same size"
    rewrite(place / "3.txt", b"4", b"3")
    (place / "3.txt").rename(place / "3.md")
    assert "the files of source seen changed" in built_again()
    (place / "3.md").rename(place / "3.txt")
    assert "is already built" in built_again()
    rewrite(large, b"abc", b"abd")
    assert "(the files of source large changed)" in built_again(), "in a sample of it"
    rewrite(large, b"abd", b"abc")
    assert "is already built" in built_again()
    os.utime(large)
    assert "(the files of source large changed)" in built_again(), "perhaps between samples"


def test_no_validation_document_and_then_another_share(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in passages(11)])
    out = tmp_path / "out"

    told = refusal(capsys, source, "--validation=0.0005", out=out, tokenizer=tokenizer)

    assert "Of 11 documents none falls into validation with --validation 0.0005" in told
    proposed = re.search(r"--validation (\S+), or with --validation 0 for no validation", told)
    assert proposed is not None
    assert not list(out.rglob("*")), "nothing is left"
    build(source, f"--validation={proposed[1]}", out=out, tokenizer=tokenizer)
    refusal(capsys, source, "--validation=0.0005", out=tmp_path / "two", tokenizer=tokenizer)
    build(source, "--validation=0", out=tmp_path / "two", tokenizer=tokenizer)
    summary = capsys.readouterr().out
    assert "train: 11 documents," in summary
    assert "validation:" not in summary
    assert "samples" not in summary

    one = write_lines(tmp_path / "one.jsonl", [{"text": "the bus"}])
    alone = refusal(capsys, one, "--validation=0.0005", out=tmp_path / "three", tokenizer=tokenizer)
    assert "Of 1 document none" in alone
    assert "run again with --validation 0 for no" in alone


def test_a_build_without_a_finished_part_gives_way(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    lines = [{"text": text} for text in passages(60)]
    source = write_lines(tmp_path / "a.jsonl", lines)
    common = ["--workers", "1", "--validation", "0.2"]
    assert main(["build", str(source), str(out), "--vocabulary", "60000", *common]) == 2
    assert (out / ".building").exists()

    assert main(["build", str(source), str(out), "--vocabulary", "280", *common]) == 0
    assert "what was begun with other arguments or inputs is removed" in capsys.readouterr().err

    # Shards of a part in hand are there, and the part is not finished.
    write_lines(source, [{"text": text} for text in passages(1500)])
    source.write_text(source.read_text() + "{\n")
    two = tmp_path / "two"
    refusal(capsys, source, out=two, tokenizer=tokenizer)
    assert list(two.rglob("*.mds"))
    write_lines(source, lines[:20])
    build(source, out=two, tokenizer=tokenizer)
    build(source, out=tmp_path / "three", tokenizer=tokenizer)
    assert files_of(two) == files_of(tmp_path / "three")


def test_lines_tell_how_far_it_is_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.02)
    screen = io.StringIO()
    console = Console(file=screen, width=40)

    def wait_for(text: str) -> None:
        deadline = time.monotonic() + 60
        while text not in screen.getvalue():
            assert time.monotonic() < deadline, screen.getvalue()
            time.sleep(0.01)

    with bar(console, "writing", total_bytes=3_000_000_000) as report:
        wait_for("writing: 0.0 of 3,000.0 MB, 0 documents\n")
        report(1_200_000, 1500, 70_000)
        wait_for("writing: 1.2 of 3,000.0 MB, 1,500 documents, ")
        wait_for(" tokens/s\n")
    with progress.busy(console, "training the tokenizer"):
        wait_for("training the tokenizer: 0 s so far\n")
    said = screen.getvalue()
    time.sleep(0.1)
    assert screen.getvalue() == said, "it ends with the work"


@pytest.mark.long
def test_an_interrupt_while_workers_start_is_told_in_a_line(
    tmp_path: Path, tokenizer: Path
) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in passages(400)])
    places = ["build", str(source), str(tmp_path / "out"), "--tokenizer", str(tokenizer)]
    flags = [*SHORT, "--workers", "2", "--part-mebibytes=0.02"]
    command = subprocess.Popen(
        [sys.executable, "-m", "tools.corpus", *places, *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=warm.REPOSITORY,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    # The server and the tracker of resources; workers come next, and import for seconds.
    try:
        while len(psutil.Process(command.pid).children(recursive=True)) < 3:
            assert command.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(command.pid, signal.SIGINT)
        _, told = command.communicate(timeout=300)
    finally:
        command.kill()
    assert command.returncode == 130
    lines = [line for line in told.splitlines() if not line.startswith("writing: ")]
    assert lines == ["interrupted; what is finished of a build stays"]


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
    # OUT may be a mount, and nobody be able to write beside it.
    out = tmp_path / "parent" / "out"
    out.mkdir(parents=True)
    out.parent.chmod(0o555)
    with Workshop(str(out)).lock():
        assert list(out.parent.iterdir()) == [out]
        told = refusal(capsys, source, out=out, tokenizer=tokenizer)
    assert f"{out} is in use by another process, pid {os.getpid()} of" in told
    assert not list(out.iterdir())


def test_an_input_that_changes_meanwhile_is_noticed(
    tmp_path: Path, tokenizer: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tools.corpus import build as building

    real = building.cut

    def cut_then_change(*arguments: object, **options: object) -> object:
        plan = real(*arguments, **options)  # type: ignore[arg-type]  # passed on as they came
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
