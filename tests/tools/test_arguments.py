"""Every command, whatever it is given: a status of the table, a sentence, and nothing harmed.

Parsers are found in the commands themselves, so that a new command or option is tried as well. What
would start processes or join ranks is tried up to there.
"""

import argparse
import contextlib
import io
import itertools
import multiprocessing.process
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.lab_fixtures import S3Lab
from tests.tools.parsers import Command, commands
from tests.train.runs import TINY_RUN
from tools.arguments import output_file, real, whole
from tools.corpus.__main__ import main as corpus_main
from tools.lab.s3 import SOCKETS
from train.exit_status import ExitStatus

STORED = Path("tests/fixtures/run_7cd86b9")
SEED = 20_261
DEADLINE_SECONDS = 8.0
LONGEST_LINE = 1000
DAILY = 160

SOUND = {
    "arguments": ["tiny_run.yaml", "data.corpus=corpus", "run_directory=new_run"],
    "overrides": ["data.corpus=corpus", "run_directory=new_run", "steps=40"],
    "sources": ["rows.jsonl"],
    "corpus": ["corpus"],
    "checkpoint": [f"{STORED}/finetuned"],
    "directory": [f"{STORED}/pretrained"],
    "run": [f"{STORED}/finetuned"],
    "tokenizer": ["corpus/tokenizer.json"],
    "calibration": ["new.json"],
    "prompt": ["the driver [[maps a]] page"],
    "licence": ["rows=MIT"],
    "out": ["new_out"],
    "cache": ["new_cache"],
    "only": [],
    "module": ["train"],
}
"""Arguments that work, by what they are called; of another option, one is made of its type."""

BESIDES = {
    "tools.plan cost": ["--gpus=2"],
    "tools.corpus build": ["--vocabulary=270", "--validation=0.2", "--workers=1"],
    "tools.generate": ["--prompt=the page"],
    "tools.media build episodes": ["--episodes=4"],
}
"""Options without which little is built for long."""

LACKING = {
    *("tools.bench", "tools.corpus instruct", "tools.lab slurm env", "tools.lab s3 env"),
    *("tools.tasks build", "tools.tasks verify", "tools.tasks corpus", "tools.tasks outcome"),
    *("tools.contamination", "tools.harness tasks", "tools.import", "tools.export", "tools.serve"),
    *("tools.assemble", "tools.comparison", "tools.status", "tools.submit", "tools.trace"),
    *("tools.dashboard", "tools.try_it", "tools.wandb_sync", "tools.chaos", "tools.media build"),
    *("tools.media convert", "tools.probe", "tools.units"),
}
"""Commands that need what is not there: a cluster, a peer, packages, a service that runs, tasks
that are built, a folder of transformers, a checkpoint without adapters; or that serve until they
are ended."""

HOSTILE = (
    *("", " ", "-", "--", "---", "~", "~no-one/x", "$UNSET", "$UNSET/x", "a\nb", "\udcff\udcfe"),
    *("x" * 5000, "é" * 300, "[red]", "\x1b[31m", "%s", "{0}", "null", "[1", "{}", "a=b", "="),
    *("0", "-1", "1e400", "nan", "inf", "-inf", "1" * 31, "1" * 5000, "٣", "1_000", "0x10", "1.5"),
    *("..", ".", "null", "full", "pipe", "missing", "missing/deep/er", "rows.jsonl"),
    *("rows.jsonl/below", "empty", "binary", "loop", "dangling", "broken.yaml", "tiny_run.yaml"),
    *("corpus", "corpus/train", "corpus/train/index.json", "corpus/tokenizer.json"),
    *(f"{STORED}/pretrained", f"{STORED}/finetuned/checkpoints", "corpus/train/lengths.json"),
    *("s3://nowhere/x", "s3://lab/x", "s3://", "memory://x", "file://x/y", "*", "[a]", "a#b?c"),
    *("[[", "]]", "[[image:x]]", r"\[[", "=1", "steps=x", "optim.lr=nan", "data.corpus=missing"),
)  # fmt: skip


class Launched(BaseException):
    """What was asked for made sense: a process would have been started, or ranks joined."""


class Harmed(BaseException):
    """Something was about to be written outside of the working directory."""


class Hangs(BaseException):
    """It took too long."""


def sound(action: argparse.Action) -> list[str]:
    """Values that an argument takes."""
    if action.nargs == 0:
        return []
    if action.choices:
        return [str(next(reversed(list(action.choices))))]
    if action.dest in SOUND:
        return SOUND[action.dest]
    for value in ("1", "0.5", "16", "260", "300", "new"):
        with contextlib.suppress(Exception):
            (action.type or str)(value)  # pyright: ignore[reportCallIssue]
            return [value]
    raise AssertionError(f"no value is known for {action.dest}")


def spelled(action: argparse.Action, values: Sequence[str]) -> list[str]:
    if not action.option_strings:
        return list(values)
    if len(values) == 1 and action.nargs is None:
        return [f"{action.option_strings[-1]}={values[0]}"]
    return [action.option_strings[-1], *values]


def one_fault(command: Command) -> Iterator[list[str]]:
    """Sound arguments with one that is hostile; the first has none."""
    needed = [action for action in command.actions if action.required]
    besides = BESIDES.get(str(command), [])
    yield [*besides, *(word for action in needed for word in spelled(action, sound(action)))]
    for action in command.actions:
        others = [word for a in needed if a is not action for word in spelled(a, sound(a))]
        for value in HOSTILE if action.nargs != 0 else ("", "x"):
            yield [*besides, *others, *spelled(action, [value])]


def many_faults(command: Command, chance: random.Random) -> Iterator[list[str]]:
    """Arguments of any kind, sound ones more often."""
    while True:
        words = [*BESIDES.get(str(command), [])]
        for action in command.actions:
            if chance.random() < (0.95 if action.required else 0.3):
                is_sound = action.nargs == 0 or chance.random() < 0.75
                words += spelled(action, sound(action) if is_sound else [chance.choice(HOSTILE)])
        yield words


_roots: list[str] = []
"""Where files may be written now; everywhere, if there is none."""


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not _roots:
        return
    if event == "open":
        path, mode, flags = arguments
        is_written = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        paths = [path] if is_written or (mode and set(mode) & set("wax+")) else []
    elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"):
        paths = [arguments[0]]
    elif event in ("os.rename", "os.link"):
        paths = list(arguments[:2])
    elif event == "os.symlink":
        paths = [arguments[1]]
    else:
        return
    for path in paths:
        if not isinstance(path, str | bytes | os.PathLike):
            continue  # a descriptor
        full = os.path.realpath(os.fsdecode(path))
        is_device = event == "open" and full == os.devnull
        # What a store that was started here has put there, whatever it is told.
        is_socket = event == "os.remove" and full.startswith(f"{SOCKETS}/seaweedfs-")
        if not is_device and not is_socket and not full.startswith((*_roots, "/proc/self/")):
            _roots.clear()
            raise Harmed(f"{event} {full}")


@dataclass
class World:
    """A directory to work in, and what in it must outlive every refusal.

    Attributes:
        place: the working directory.
        kept: a copy of what belongs there.
        told: by the last command.
    """

    place: Path
    kept: Path
    told: str = ""

    def fresh(self) -> None:
        """Everything as it was at first."""
        self.place.mkdir(parents=True, exist_ok=True)
        for path in self.place.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        shutil.copytree(self.kept, self.place, symlinks=True, dirs_exist_ok=True)
        os.mkfifo(self.place / "pipe")
        for name, number in (("null", 3), ("full", 7)):
            try:  # never the system's own: what replaced one would take it away from everyone
                os.mknod(self.place / name, 0o666 | stat.S_IFCHR, os.makedev(1, number))
            except PermissionError:
                (self.place / name).touch()

    def state(self) -> dict[str, tuple[int, int]]:
        """What is there, apart from what a command may add."""
        found: dict[str, tuple[int, int]] = {}
        for path in self.kept.rglob("*"):
            here = self.place / path.relative_to(self.kept)
            with contextlib.suppress(OSError):
                status = here.lstat()
                found[str(here)] = status.st_size, 0 if here.is_dir() else status.st_mtime_ns
        return found

    def run(self, command: Command, arguments: Sequence[str]) -> int:
        """The status of a command; what is wrong with how it ended raises."""
        before = self.state()
        out, errors = io.TextIOWrapper(io.BytesIO()), io.TextIOWrapper(io.BytesIO())
        for stream in (out, errors):
            stream.reconfigure(errors="backslashreplace")
        _roots[:] = [str(self.place.parent)]
        # Not the timer of pytest-timeout.
        alarm = threading.Timer(
            DEADLINE_SECONDS,
            lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2),
        )
        alarm.start()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
                status = command.main([*command.before, *arguments])
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else -1
        except Launched:
            status = ExitStatus.COMPLETE
        finally:
            alarm.cancel()
            _roots.clear()
        told = ""
        for stream in (out, errors):
            stream.flush()
            told += stream.buffer.getvalue().decode()  # pyright: ignore[reportAttributeAccessIssue]
        assert status in [*ExitStatus], status
        assert "Traceback" not in told, told
        self.told = told
        changed = self.state() != before
        if status == ExitStatus.MISTAKE:
            assert told.strip(), "a refusal says why"
            longest = max(map(len, told.splitlines()))
            assert longest <= LONGEST_LINE, f"a line of {longest}: {told[:300]}"
            assert not changed, "a refusal changes nothing"
        if changed or any(path.name.startswith("new") for path in self.place.iterdir()):
            self.fresh()
        return status


def _launch(*_: Any, **__: Any) -> None:
    raise Launched


@pytest.fixture(scope="module")
def world(s3_lab: S3Lab, tmp_path_factory: pytest.TempPathFactory) -> Generator[World]:
    root = tmp_path_factory.mktemp("world")
    kept = root / "kept"
    shutil.copytree(warm.REPOSITORY / STORED, kept / STORED)
    shutil.copytree(warm.REPOSITORY / "configs", kept / "configs")
    shutil.copyfile(TINY_RUN, kept / "tiny_run.yaml")
    rows = "".join(f'{{"text": "the kernel maps page {n} of memory"}}\n' for n in range(40))
    (kept / "rows.jsonl").write_text(rows)
    build = [str(kept / "rows.jsonl"), str(kept / "corpus"), "--vocabulary", "270"]
    sound = ["--validation", "0.2", "--workers", "1"]
    assert corpus_main(["build", *build, *sound]) == 0
    (kept / "empty").touch()
    (kept / "binary").write_bytes(bytes(range(256)))
    (kept / "broken.yaml").write_text("a: [1\n")
    (kept / "loop").symlink_to("loop")
    (kept / "dangling").symlink_to("nothing")
    world = World(root / "work" / "here", kept)
    (root / "work" / "tmp").mkdir(parents=True)
    (root / "work" / "home").mkdir()
    world.fresh()
    sys.addaudithook(_watch)

    def hang(*_: object) -> None:
        raise Hangs

    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        environment = {
            **s3_lab.environment,
            "HOME": str(root / "work" / "home"),
            "TMPDIR": str(root / "work" / "tmp"),
            "XDG_CACHE_HOME": str(root / "work" / "home"),
        }
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(tempfile, "tempdir", environment["TMPDIR"])
        patch.setattr(sys, "dont_write_bytecode", True)
        patch.chdir(world.place)
        patch.setattr(subprocess.Popen, "__init__", _launch)
        patch.setattr(os, "posix_spawn", _launch)
        patch.setattr(multiprocessing.process.BaseProcess, "start", _launch)
        patch.setattr("train.__main__.join", _launch)
        patch.setattr("uvicorn.Server.run", _launch)
        usual = signal.signal(signal.SIGUSR2, hang)
        yield world
        signal.signal(signal.SIGUSR2, usual)


def tried(
    world: World, cases: Sequence[tuple[Command, list[str]]], *, allowed: Collection[int]
) -> None:
    faults: list[str] = []
    for command, arguments in cases:
        os.chdir(world.place)
        try:
            status = world.run(command, arguments)
            assert status in allowed, f"status {status}: {world.told[-600:]}"
        except (Exception, Harmed, Hangs) as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            words = [word if len(word) < 60 else f"{word[:60]}…" for word in arguments]
            what = f"{type(error).__name__} {str(error)[:700]}"
            faults.append(f"{command} {words!a}: {what} ({at.filename}:{at.lineno})")
            world.fresh()
    assert not faults, f"{len(faults)} of {len(cases)}:\n" + "\n".join(faults)


def test_every_command_works_with_sound_arguments(world: World) -> None:
    found = list(commands())
    assert {str(command) for command in found} >= {"train", "tools.corpus build", "tools.merge"}
    tried(
        world,
        [(command, next(one_fault(command))) for command in found if str(command) not in LACKING],
        allowed=[0],
    )


def test_some_arguments(world: World) -> None:
    chance = random.Random(SEED)
    cases = [(command, words) for command in commands() for words in one_fault(command)]
    tried(world, chance.sample(cases, DAILY), allowed=[*ExitStatus])


@pytest.mark.long
def test_one_argument_at_fault(world: World) -> None:
    tried(
        world,
        [(command, words) for command in commands() for words in one_fault(command)],
        allowed=[*ExitStatus],
    )


@pytest.mark.long
def test_many_arguments_at_fault(world: World) -> None:
    chance = random.Random(SEED)
    cases = [
        (command, words)
        for command in commands()
        for words in itertools.islice(many_faults(command, chance), 60)
    ]
    tried(world, cases, allowed=[*ExitStatus])


def test_what_a_command_of_a_command_does_not_know_is_told_with_its_usage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert corpus_main(["inspect", "corpus", "5"]) == ExitStatus.MISTAKE
    said = capsys.readouterr().err
    assert said.startswith("usage: python -m tools.corpus inspect [-h] ")
    assert "--number" in said
    assert said.endswith("unrecognized arguments: 5\n")


@pytest.mark.parametrize(
    ("kind", "text", "found"),
    [
        (whole(), "0", 0),
        (whole(least=1), "0", "'0': give a whole number from 1 on"),
        (whole(most=9), "10", "from 0 to 9"),
        (whole(), "9" * 5000, "…': give"),
        (whole(), "٣", "'٣': give"),
        (whole(), "1_000", "give a whole"),
        (whole(), "1.0", "give a whole"),
        (real(), "3e-4", 3e-4),
        (real(), "nan", "'nan': give a number"),
        (real(least=0, most=1), "1e400", "give a number from 0 on and at most 1"),
        (real(above=0), "0", "give a number above 0"),
        (real(), "٣", "give a number"),
        (output_file, "s3://a/b", "no directory of this host"),
        (output_file, "", "cannot be the name"),
        (output_file, "x" * 300, "cannot be written; name a file"),
        (output_file, "/dev", "/dev: cannot be written"),
        (output_file, "/dev/null/x", "/dev/null/x: cannot be written"),
        (output_file, "/dev/null", Path("/dev/null")),
    ],
)
def test_types_of_arguments(kind: Callable[[str], Any], text: str, found: object) -> None:
    if isinstance(found, str):
        with pytest.raises(argparse.ArgumentTypeError, match=re.escape(found)):
            kind(text)
    else:
        assert kind(text) == found
