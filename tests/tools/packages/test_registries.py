"""Packages of npm and PyPI: kept, read, and what is said where they cannot be had."""

import zipfile
from pathlib import Path

import pytest

from tests.tools.tasks.making import keep, keep_npm, packages
from tools.packages import npm, pypi
from train.errors import DataError


def wheel(path: Path, **files: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/"), text)
    return path


def test_a_kept_package_is_read(tmp_path: Path) -> None:
    keep_npm(tmp_path, "words", "1.0.0", {"dict/data.txt": "a b"})
    given = packages(tmp_path)
    path = given.npm("words", "1.0.0", licence="MIT")
    assert npm.content(path, "dict/data.txt") == b"a b"
    [used] = given.used
    assert (used["name"], used["version"], used["licences"]) == ("words", "1.0.0", ["MIT"])
    with pytest.raises(DataError, match=r"words-1.0.0.tgz has no sound nothing"):
        npm.content(path, "nothing")


def test_a_kept_wheel_is_read(tmp_path: Path) -> None:
    content = {"a__data.json": "[]", "a-1.dist-info__LICENSE": "Free."}
    made = wheel(tmp_path / "a.whl", **content)
    keep(tmp_path / "pypi/a-1/a-1-py3-none-any.whl", made.read_bytes())
    given = packages(tmp_path)
    path = given.pypi("a", "1", licence="MIT")
    assert pypi.content(path, "a/data.json") == b"[]"
    assert given.licence_texts == {"a": "Free."}
    with pytest.raises(DataError, match=r"has no sound a/other.json .*delete it"):
        pypi.content(path, "a/other.json")


@pytest.mark.parametrize("read", [npm.content, pypi.content])
def test_a_damaged_package_is_named(tmp_path: Path, read: object) -> None:
    path = tmp_path / "x.tgz"
    path.write_bytes(b"neither")
    assert callable(read)
    with pytest.raises(DataError, match=r"x.tgz has no sound a .*delete it"):
        read(path, "a")


def test_without_npm_the_message_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="npm is missing, so packages of npm cannot be had here"):
        npm.obtain("words", "1.0.0", cache=tmp_path / "cache", report=lambda _: None)


@pytest.mark.network
@pytest.mark.long
@pytest.mark.parametrize("registry", [npm, pypi])
def test_a_package_that_does_not_exist(tmp_path: Path, registry: object) -> None:
    obtain = getattr(registry, "obtain")  # noqa: B009
    with pytest.raises(DataError, match=r"Could not download semicausal-none.*99.0.0"):
        obtain("semicausal-none", "99.0.0", cache=tmp_path, report=lambda _: None)
    assert not list(tmp_path.rglob("*.tgz")) + list(tmp_path.rglob("*.whl"))
