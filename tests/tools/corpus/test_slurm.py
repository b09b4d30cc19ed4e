"""A corpus built by the tasks of a Slurm array is the one that is built here, to the byte."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from tests.tools.corpus.making import (
    build,
    build_status,
    files_of,
    passages,
    refusal,
    write_lines,
)
from tests.tools.corpus.slurm_check import Killer, tasks_repeated
from tools.corpus import slurm
from tools.corpus.workshop import RECORD, Workshop
from tools.lab.jobs import SlurmLab
from tools.submit import calling
from train.errors import DataError, StorageError
from train.storage.diagnosis import DeniedError

CUT = "--part-mebibytes=0.02"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "a.jsonl", [{"text": text} for text in passages(4000)])


@pytest.fixture
def lab(slurm_lab: SlurmLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlurmLab:
    for name, value in slurm_lab.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return slurm_lab


@pytest.mark.long
def test_an_array_with_a_task_killed(
    lab: SlurmLab, tmp_path: Path, source: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = build(source, CUT, out=tmp_path / "whole", tokenizer=tokenizer)
    out = tmp_path / "out"
    killer = Killer(out)

    build(source, CUT, "--tasks=2", out=out, tokenizer=tokenizer)

    killer.join()
    told = capsys.readouterr().err
    assert tasks_repeated(told) == 1, "it was not killed in the middle"
    assert files_of(out) == files_of(whole)
    assert not lab.call("squeue", "--me", "--noheader")

    # Before anything is looked at or written.
    two = tmp_path / "two"
    nowhere = "--sbatch=--partition=nowhere"
    told = refusal(capsys, source, "--tasks=2", nowhere, out=two, tokenizer=tokenizer)
    assert told.startswith("sbatch: ")
    assert told.endswith("nvalid partition name specified (--sbatch --partition=nowhere)\n")
    assert not two.exists()


def test_what_makes_no_array(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out, source = tmp_path / "out", tmp_path / "not looked at"

    def told(*flags: str) -> str:
        return refusal(capsys, source, *flags, out=out, tokenizer=tokenizer)

    assert "--sbatch says how jobs are submitted: give --tasks N too" in told("--sbatch=--mem=1G")
    assert "--array is set by the build: leave it out" in told("--tasks=2", "--sbatch=--array=0-7")
    assert "--sbatch: No closing quotation" in told("--tasks=2", "--sbatch='--mem=1G")
    assert "--arr is set by the build" in told("--tasks=2", "--sbatch=--arr=0-7")
    assert "mem=1G is no flag such as --mem=8G" in told("--tasks=2", "--sbatch=mem=1G")
    # Taken, as far as it goes without Slurm.
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "sbatch: is not found: submit on a host of the cluster" in told(
        "--tasks=2", "--sbatch=--partition=x --mem=1G"
    )
    assert not out.exists()


@pytest.fixture
def begun(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[Path, Path, Path]:
    """A build that ended in the middle, the same whole, and the source of both."""
    rows = [{"text": text} for text in passages(60)]
    source = write_lines(tmp_path / "a.jsonl", rows)
    whole = build(source, "--part-mebibytes=0.0015", out=tmp_path / "whole", tokenizer=tokenizer)
    out = tmp_path / "out"
    real = Workshop.note

    def killed(self: Workshop, kind: str, part: int, content: object) -> None:
        if kind == RECORD and len(self.noted(RECORD)) == 2:
            raise DataError("as if killed")
        real(self, kind, part, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workshop, "note", killed)
        refusal(capsys, source, "--part-mebibytes=0.0015", out=out, tokenizer=tokenizer)
    monitor = Workshop(str(out))
    plan = json.loads((out / ".building/plan.json").read_text())
    missing = sorted({*range(len(plan["parts"]))} - monitor.noted(RECORD))
    assert len(missing) > 2
    shares = slurm.Shares(kind=RECORD, numbers=[missing[:2], [*missing[2:], *missing[:2]]])
    monitor.write(monitor.working / "shares.json", shares.model_dump_json().encode())
    return out, whole, source


def test_a_task_does_its_share_and_what_is_done_not_again(
    begun: tuple[Path, Path, Path], tokenizer: Path
) -> None:
    out, whole, source = begun
    records = out / ".building/parts"
    done = {path.name: path.stat().st_mtime_ns for path in records.glob("*.json")}

    for task in "01":
        status = build_status(
            source, "--part-mebibytes=0.0015", "--tasks=2", f"--task={task}", out=out,
            tokenizer=tokenizer,
        )  # fmt: skip
        assert status == 0
        now = {path.name: path.stat().st_mtime_ns for path in records.glob("*.json")}
        assert done.items() < now.items()
        done = now

    assert not (out / "manifest.json").exists(), "whoever builds makes it a corpus"
    build(source, "--part-mebibytes=0.0015", out=out, tokenizer=tokenizer)
    assert files_of(out) == files_of(whole)


def test_a_task_refuses_what_is_not_its_build(
    begun: tuple[Path, Path, Path], tokenizer: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out, whole, source = begun
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "77")
    done = {*(out / ".building/parts").iterdir()}

    def told(*flags: str, out: Path = out) -> str:
        return refusal(
            capsys, source, "--part-mebibytes=0.0015", "--tasks=2", *flags, out=out,
            tokenizer=tokenizer,
        )  # fmt: skip

    assert "has no work for a task 2: build with --tasks" in told("--task=2")
    other = told("--task=0", "--validation=0.5")
    assert "an unfinished corpus of other arguments or inputs (validation 0.2, now 0.5)" in other
    lines = source.read_text()
    source.write_text(lines.replace("bus", "car", 1))
    assert "(the files of source a changed)" in told("--task=0")
    fault = (out / ".building/faults/77.txt").read_text()
    assert "(the files of source a changed)" in fault, "whoever builds is told"
    source.write_text(lines)
    before = files_of(whole)
    assert "nothing is being built in" in told("--task=0", out=whole)
    assert files_of(whole) == before
    assert {*(out / ".building/parts").iterdir()} == done


def test_a_task_that_outlives_its_build_writes_nothing(
    begun: tuple[Path, Path, Path], tokenizer: Path
) -> None:
    out, _, _ = begun
    workshop = Workshop(str(out))
    workshop.join(json.loads((out / ".building/recipe.json").read_text()))
    workshop.note("parts/{:05}.counts.npy", 7, b"still the same build")
    (out / ".building/recipe.json").write_text("{}")

    with pytest.raises(DataError, match=r"another build has begun in .*, or this one is done"):
        workshop.note(RECORD, 7, b"{}")

    assert 7 not in workshop.noted(RECORD)


def test_sources_that_change_between_tasks(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The last look, after all parts: one of them may be of another file than the others."""
    from tools.corpus import build as building
    from tools.corpus.request import Request

    source = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in passages(60)])
    request = Request(sources=[str(source)], tokenizer=tokenizer)
    console = Console(quiet=True)
    recipe = building._asked(str(tmp_path / "out"), request, console).recipe
    building._require_unchanged("OUT", request, recipe)
    os.utime(source)
    building._require_unchanged("OUT", request, recipe)
    source.write_text(source.read_text().replace("bus", "car", 1))
    with pytest.raises(DataError, match="while OUT was built, the files of source a changed"):
        building._require_unchanged("OUT", request, recipe)


@pytest.mark.parametrize("name", ["out", "a\nb 'c\" =é ", f"{'/'.join(['x' * 200] * 8)}"])
def test_jobs_that_are_left_of_a_build_are_ended(lab: SlurmLab, tmp_path: Path, name: str) -> None:
    """Of this place and no other, whatever it is called: Slurm takes a line of 1,024 bytes."""
    workshop = Workshop(str(tmp_path / name))
    mine, other = map(slurm._comment, (workshop, Workshop(str(tmp_path / "other"))))
    # Jobs get their numbers anew where a cluster is set up again.
    workshop.write(workshop.working / "faults/7.txt", b"of another job 7")
    jobs = [
        lab.submit(f"--comment={comment}", "--wrap=sleep 60", "--array=0-1", directory=tmp_path)
        for comment in (mine, other)
    ]
    said: list[str] = []
    slurm.SlurmArray(tasks=2, arguments=(), report=said.append).clear(workshop)
    left = lab.call("squeue", "--me", "--noheader", "--format=%F").split()
    assert {*left} == {str(jobs[1])}
    assert len(said) == 1
    assert not (workshop.working / "faults").exists()
    lab.call("scancel", str(jobs[1]))


def test_an_array_that_brings_nothing_forth_is_given_up(
    lab: SlurmLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop = Workshop(str(tmp_path / "out"))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    array = slurm.SlurmArray(tasks=2, arguments=())
    with pytest.raises(DataError, match=r"no task of job \d+ has finished a part: look into"):
        list(array.spread(workshop, RECORD, [0, 1, 2], workers=1))


def test_a_store_that_refuses_for_a_while_ends_no_build(
    lab: SlurmLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a task left for that is given out again, as long as any gets on."""
    workshop = Workshop(str(tmp_path / "out"))
    workshop.write(workshop.working / "recipe.json", b"{}")
    submitted: list[int] = []
    real = calling.submit

    def submit(command: Sequence[str], environment: Mapping[str, str]) -> int:
        submitted.append(real(command, environment))
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", str(submitted[-1]))
        slurm.tell_fault(workshop, StorageError("s3://lab/x: the store is busy"))
        if len(submitted) == 1:
            workshop.write(workshop.working / RECORD.format(1), b"{}")
        return submitted[-1]

    monkeypatch.setattr(calling, "submit", submit)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    said: list[str] = []
    array = slurm.SlurmArray(tasks=2, arguments=(), report=said.append)
    with pytest.raises(DataError, match=r"^s3://lab/x: the store is busy$"):
        list(array.spread(workshop, RECORD, [0, 1, 2], workers=1))
    assert len(submitted) == 2
    # What is not there, or not allowed, is so for the next task, too.
    slurm.tell_fault(workshop, DeniedError("s3://lab/x: access is denied"))
    fault = workshop.read(workshop.working / f"faults/{submitted[-1]}.txt")
    assert fault == b"s3://lab/x: access is denied"
    assert said[0].startswith(f"1 task of job {submitted[0]} ended early")


def test_what_only_completes_is_not_waited_for(lab: SlurmLab, tmp_path: Path) -> None:
    """On a node in trouble that takes hours, and nothing is written any more."""
    from tools.lab.daemons import Record, frozen

    workshop = Workshop(str(tmp_path / "out"))
    job = lab.submit(f"--comment={slurm._comment(workshop)}", "--wrap=sleep 60", directory=tmp_path)
    lab.wait(job, timeout_seconds=60, states={"RUNNING"})
    record = Record.load(lab.directory)
    assert record is not None
    nodes = [each for each in record.daemons if "slurmd" in each.name]
    assert len(nodes) == 2
    with frozen(record.model_copy(update={"daemons": nodes})):
        lab.call("scancel", str(job))
        assert [each.state for each in calling.jobs()] == ["COMPLETING"]
        slurm.SlurmArray(tasks=2, arguments=(), report=pytest.fail).clear(workshop)
        assert list(slurm._noted(workshop, RECORD, [0], job)) == []
    lab.wait(job, timeout_seconds=60)


def test_a_directory_that_is_shown_late(lab: SlurmLab, tmp_path: Path) -> None:
    """A network's file system lists what it has seen a minute ago."""

    class Late(Workshop):
        def noted(self, kind: str) -> set[int]:
            return set()

    workshop = Late(str(tmp_path / "out"))
    for part in (0, 2):
        workshop.note(RECORD, part, b"{}")
    assert list(slurm._noted(workshop, RECORD, [0, 1, 2], 2**30)) == [0, 2]


@pytest.mark.long
def test_what_a_task_meets_is_told_as_if_it_were_here(
    lab: SlurmLab, tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in passages(60))
    source = tmp_path / "a.jsonl"
    source.write_text(f"{lines}{{\n")
    flags = ("--part-mebibytes=0.0015", "--dedup=minhash")
    here = refusal(capsys, source, *flags, out=tmp_path / "here", tokenizer=tokenizer)
    there = refusal(capsys, source, *flags, "--tasks=1", out=tmp_path / "out", tokenizer=tokenizer)
    assert there.splitlines()[-1] == here.splitlines()[-1]
