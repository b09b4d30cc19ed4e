"""Hosts that lack what others have: a name or a home for the user, room in a socket's path."""

import os
import pwd
import runpy
import shutil
import stat
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

from tests import warm
from tests.corpora import WORDS, write_corpus
from tests.train.runs import TINY_RUN
from tools.ranks import replace_environment

NOBODY = 12345


@pytest.fixture
def place() -> Generator[Path]:
    """A directory that every user may write to; pytest's own are this user's."""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as name:
        path = Path(name)
        path.chmod(0o777)
        yield path


def _without_name_or_home(module: str, arguments: Sequence[str], log: Path) -> None:
    """Runs a module as the user of a container does, in a process that has imported all."""
    needed = (warm.REPOSITORY, Path(sys.executable).resolve())
    above = {above for path in needed for above in (*path.parents, path)}
    if os.geteuid() == 0 and all(path.stat().st_mode & stat.S_IXOTH for path in above):
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    else:  # this user's entry stays, and is not looked at
        pwd.getpwuid = lambda _: (_ for _ in ()).throw(KeyError("uid not found"))
    replace_environment({"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"})
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = [module, *arguments]
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def test_a_user_without_name_or_home(place: Path) -> None:
    corpus = write_corpus(place / "corpus")
    for path in (corpus, *corpus.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    (place / "a.txt").write_text(f"{WORDS}\n" * 40)
    run = [str(TINY_RUN), f"data.corpus={corpus}", f"run_directory={place / 'run'}", "steps=2"]
    built = str(place / "built")
    homeless = "this user has no home directory; set"
    for module, arguments, code, told in (
        ("tools.corpus", ["--help"], 0, "instruct"),
        ("tools.corpus", ["build", str(place / "a.txt"), built, "--vocabulary", "260",
                          "--validation", "0", "--workers", "1"], 0, "1 documents"),
        ("tools.corpus", ["verify", built, "--workers", "1"], 0, "sound"),
        ("tools.corpus", ["build", str(place / "docs")], 2, f"packages: {homeless} XDG_CACHE_HOME"),
        ("train", run, 0, "step 2/2"),
        ("train", [*run, "data.corpus=s3://a/b", f"run_directory={place / 'b'}"], 2,
         f"shards: {homeless} storage.cache"),
        ("tools.generate", [str(place / "run"), "--prompt", "the"], 0, "the"),
        ("tools.plan", [*run, "--gpus", "1", "--gpu", "cpu"], 0, "nominal"),
        ("tools.plan", ["calibrate"], 2, homeless),
    ):  # fmt: skip
        log = place / "log"
        log.unlink(missing_ok=True)
        process = warm.context().Process(
            target=_without_name_or_home, args=(module, arguments, log), daemon=True
        )
        process.start()
        process.join(120)
        shown = log.read_text() if log.exists() else ""
        assert process.exitcode == code, (module, arguments, shown)
        assert told in shown, (module, arguments, shown)
        assert "Traceback" not in shown, (module, arguments, shown)


def test_sockets_fit_whatever_tmpdir_says(place: Path) -> None:
    deep = place / ("x" * 150)
    deep.mkdir()
    (place / "a.txt").write_text(f"{WORDS}\n" * 40)
    (place / "b.txt").write_text(f"{WORDS}\n" * 40)
    build = ["build", str(place), str(place / "built"), "--workers", "2", "--vocabulary", "260"]
    build += ["--validation", "0"]
    code = (
        "import sys; from tools.corpus.__main__ import main\n"
        f"sys.exit(main({build!r}) or main(['verify', {str(place / 'built')!r}, '--workers', '2']))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(deep)},
        cwd=warm.REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert "sound" in ended.stdout
    shutil.rmtree(deep)
