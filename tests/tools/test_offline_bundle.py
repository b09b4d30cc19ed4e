"""A bundle is small, and runs in an empty directory where nothing but torch's kind is installed."""

import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from tests.corpora import write_corpus
from tools.offline_bundle import __main__ as door
from tools.offline_bundle import enter
from tools.offline_bundle.__main__ import main

TAKEN_FOR_GRANTED = ("torch", "torchvision", "transformers", "pyarrow", "pillow", "scipy", "pip")


def with_needs(names: tuple[str, ...]) -> set[str]:
    """These packages and all that they need, as far as it is installed."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = door.canonical(waiting.pop())
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        if name not in found:
            found.add(name)
            waiting += [re.split(r"[^\w.-]", need)[0] for need in needs if "extra ==" not in need]
    return found


@pytest.mark.long
@pytest.mark.network
def test_a_bundle_can_be_entered_in_an_empty_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, there = tmp_path / "bundle", tmp_path / "there"
    corpus = write_corpus(tmp_path / "corpus")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert main([str(out), "--python", version, "--corpus", str(corpus)]) == 0
    assert sum(path.stat().st_size for path in out.rglob("*")) <= door.MOST_BYTES
    assert "MB in" in capsys.readouterr().out
    # A machine that has torch and transformers, and nothing of ours.
    machine = tmp_path / "machine"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(machine)], check=True)
    site = next(machine.glob("lib/python*/site-packages"))
    for name in with_needs(TAKEN_FOR_GRANTED):
        installed = metadata.distribution(name)
        for top in {file.parts[0] for file in installed.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(installed.locate_file(top))))
    python = [str(machine / "bin/python"), "-B", str(out / "enter.py"), str(there), "python", "-m"]
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "PIP_NO_INDEX": "1"}
    for command in (
        ["tools.gpu_check", "--quick", "--only", "rates", "parity"],
        ["pytest", "-q", "--collect-only", "tests/cuda"],
    ):
        done = subprocess.run(
            [*python, *command], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (there / "project/out/gpu.json").exists()
    assert (there / "project/data/pretrain/train/index.json").exists()
    assert (there / "site/deepspeed").is_dir()
    assert not (there / "site/torch").exists()


def test_a_packed_package_is_a_wheel(tmp_path: Path) -> None:
    door.pack("iniconfig", tmp_path)
    (path,) = tmp_path.iterdir()
    version = metadata.version("iniconfig")
    assert path.name == f"iniconfig-{version}-py3-none-any.whl"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*command, "--target", str(tmp_path / "site"), str(path)], check=True)
    assert (tmp_path / "site/iniconfig/__init__.py").exists()
    with zipfile.ZipFile(path) as archive:
        assert not [name for name in archive.namelist() if "__pycache__" in name]


def test_only_what_is_older_is_replaced() -> None:
    installed = metadata.version("pytest")
    assert not enter.is_older("pytest", installed)
    assert not enter.is_older("pytest", "0.1")
    assert enter.is_older("pytest", "99.0")
    assert enter.is_older("no-such-package", "0.1")
    assert list(enter.numbers("2.13.0+cpu")) == [2, 13, 0]
    assert list(enter.numbers("1.5.7rc1")) == [1, 5]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "is there and is no bundle"),
        (["--corpus", "nowhere"], "nowhere is no corpus"),
    ],
)
def test_what_cannot_be_bundled_is_told(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    if not arguments:
        out.mkdir()
        (out / "something").touch()
    assert main([str(out), *arguments]) == 2
    assert told in capsys.readouterr().err


def test_a_bundle_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(door, "download", lambda *_, **__: None)
    monkeypatch.setattr(door, "MOST_BYTES", 1_000_000)
    assert main([str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "more than 1" in said
    assert "deepspeed-" in said
