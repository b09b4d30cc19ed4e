import gzip
import hashlib
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tools.corpus.making import documents
from tools.corpus.__main__ import main
from tools.corpus.documentation import PACKAGES, Documentation
from tools.packages import debian
from tools.packages.debian import files, licences, obtain
from train.errors import DataError

COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: many
License: GPL-2

Files: Documentation/media/*
License: GFDL-1.1+
 text

Files: debian/*
License: MIT
"""


KSM = "Pages of memory that are equal are merged into one."
INDEX = "An index of what is written about the kernel."


def build_package(directory: Path, name: str, contents: dict[str, bytes]) -> Path:
    """A real package, made with dpkg-deb, in a cache as a download leaves it."""
    tree = directory / "tree"
    control = tree / "DEBIAN/control"
    control.parent.mkdir(parents=True)
    control.write_text(
        f"Package: {name}\nVersion: 1:2.0-1\nArchitecture: all\nMaintainer: a <a@b.c>\n"
        "Description: text\n"
    )
    for path, content in contents.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(content)
    path = directory / "cache" / name / f"{name}_1%3a2.0-1_all.deb"
    path.parent.mkdir(parents=True)
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-b", str(tree), str(path)],
        check=True,
        capture_output=True,
        timeout=60,
    )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".sha256").write_text(digest + "\n")
    return directory / "cache"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    root = "usr/share/doc/linux-doc-6.1"
    return build_package(
        tmp_path,
        "linux-doc-6.1",
        {
            f"{root}/copyright": COPYRIGHT.encode(),
            f"{root}/Documentation/mm/ksm.rst.gz": gzip.compress(KSM.encode()),
            f"{root}/Documentation/index.rst": INDEX.encode(),
            f"{root}/Documentation/latin.rst": "A naïve café for the kernel.".encode("latin-1"),
            f"{root}/Documentation/translations/it_IT/x.rst": b"Testo.",
            f"{root}/Documentation/devicetree/bindings/x.txt": b"Table.",
            f"{root}/Documentation/logo.gif": b"GIF",
            f"{root}/html/x.rst.txt": b"A copy.",
        },
    )


def no_report(text: str) -> None:
    raise AssertionError(f"a cached package must not be downloaded: {text}")


def test_a_cached_package_needs_no_network_and_a_changed_hash_warns(cache: Path) -> None:
    told: list[str] = []
    texts, made = Documentation(sources=("linux-doc-6.1",), cache=cache).texts(report=told.append)
    assert {text.path: [part.text for part in text.paragraphs] for text in texts} == {
        "linux-doc-6.1/mm/ksm.rst": [KSM],
        "linux-doc-6.1/index.rst": [INDEX],
    }
    assert [text.subject for text in sorted(texts, key=lambda text: text.path)] == [
        "overview",
        "mm",
    ]
    assert made.left_out == {"not UTF-8": ["linux-doc-6.1/latin.rst"]}
    [described] = made.described
    assert described["version"] == "1:2.0-1"
    assert made.licences == ["GFDL-1.1+", "GPL-2"]
    assert made.licence_texts == {"linux-doc-6.1": COPYRIGHT}
    [warning] = told
    assert "linux-doc-6.1 is version 1:2.0-1 with SHA-256" in warning
    assert "not the d1d1b5a602f0… that this repository was measured with" in warning


def test_a_directory_that_is_called_like_a_package(
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("linux-doc-6.1").mkdir()
    Path("linux-doc-6.1/mine.txt").write_text("Not what the package holds.")
    flags = ["--vocabulary", "260", "--validation", "0", "--workers", "1", "--cache", str(cache)]
    told = "linux-doc-6.1 is the Debian package; write ./linux-doc-6.1 for what lies here\n"

    main(["build", "linux-doc-6.1", "package", *flags])
    assert told in capsys.readouterr().err
    assert main(["build", "./linux-doc-6.1", "directory", *flags]) == 0
    assert told not in capsys.readouterr().err
    assert list(documents("directory")) == ["linux-doc-6.1/mine.txt"]


def test_the_measured_hash_does_not_warn(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "linux-doc-6.1"
    _, digest = obtain(name, cache=cache, report=no_report)
    monkeypatch.setitem(PACKAGES, name, replace(PACKAGES[name], measured_sha256=digest))
    Documentation(sources=(name,), cache=cache).texts(report=no_report)


def test_a_cached_package_that_changed_is_downloaded_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    [path] = (cache / "linux-doc-6.1").glob("*.deb")
    sound = path.read_bytes()
    path.write_bytes(sound[:-100])

    def download(name: str, lists: Path | None, scratch: Path) -> Path:
        fresh = scratch / path.name
        fresh.write_bytes(sound)
        return fresh

    monkeypatch.setattr(debian, "_download", download)
    told: list[str] = []
    package, _ = obtain("linux-doc-6.1", cache=cache, report=told.append)
    assert told == ["downloading linux-doc-6.1"]
    assert package.read_bytes() == sound
    obtain("linux-doc-6.1", cache=cache, report=no_report)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One on this machine, which apt asks alone: `speaks` needs `sings`."""
    place = tmp_path / "mirror"
    stanzas: list[str] = []
    for name, needs in (("speaks", "Depends: sings\n"), ("sings", "")):
        kept = build_package(tmp_path / name, name, {f"usr/bin/{name}": b"#!/bin/sh\n"})
        [package] = (kept / name).glob("*.deb")
        place.mkdir(exist_ok=True)
        package = package.rename(place / f"{name}.deb")
        digest = hashlib.sha256(package.read_bytes()).hexdigest()
        stanzas.append(
            f"Package: {name}\nVersion: 1:2.0-1\nArchitecture: all\n{needs}Description: text\n"
            f"Filename: ./{name}.deb\nSize: {package.stat().st_size}\nSHA256: {digest}\n"
        )
    (place / "Packages").write_text("\n".join(stanzas))
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes] copy:{place} ./\n")
    settings = f'Dir::Etc::sourcelist "{tmp_path}/sources.list"; Dir::Etc::sourceparts "-";'
    (tmp_path / "apt.conf").write_text(settings)
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    return place


def test_what_a_package_needs_is_asked(mirror: Path, tmp_path: Path) -> None:
    found = debian.lacking(["speaks"], cache=tmp_path / "cache", report=lambda _: None)
    assert sorted(found) == ["sings", "speaks"]
    with pytest.raises(DataError, match=r"what hears needs \(E: Unable to locate package hears\)"):
        debian.lacking(["hears"], cache=tmp_path / "cache", report=lambda _: None)


def test_lists_are_fetched_once_for_several_packages(mirror: Path, tmp_path: Path) -> None:
    cache, lists, told = tmp_path / "cache", tmp_path / "lists", list[str]()
    speaks, _ = obtain("speaks", cache=cache, report=told.append, lists=lists)
    (mirror / "Packages").unlink()
    sings, _ = obtain("sings", cache=cache, report=told.append, lists=lists)
    assert told == ["downloading speaks", "downloading sings"]
    for package in (speaks, sings):
        debian.unpack(package, tmp_path / "unpacked")
    assert {path.name for path in (tmp_path / "unpacked/usr/bin").iterdir()} == {"speaks", "sings"}


def test_a_damaged_package_is_not_unpacked(cache: Path, tmp_path: Path) -> None:
    [path] = (cache / "linux-doc-6.1").glob("*.deb")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="is not a sound package, or there is no room to unpack"):
        debian.unpack(path, tmp_path)


def test_a_file_that_is_no_package_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x_1_all.deb"
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match=rf"{path} is not a sound package, .*\(.*delete it"):
        list(files(path, wanted=lambda _: True))


def test_reading_may_stop_early(cache: Path) -> None:
    package, _ = obtain("linux-doc-6.1", cache=cache, report=no_report)
    stream = files(package, wanted=lambda _: True)
    next(stream)
    stream.close()


def test_without_apt_the_message_says_what_else_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        DataError, match=r"apt-get is missing.* give tools.corpus text as prose:DIRECTORY"
    ):
        obtain("linux-doc-6.1", cache=tmp_path / "cache", report=lambda _: None)


@pytest.mark.network
def test_a_package_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"package no-such-doc \(E: .*\)\. Check the network and"):
        obtain("no-such-doc", cache=tmp_path, report=lambda _: None)
    assert not list(tmp_path.rglob("*.deb"))


@pytest.mark.network
def test_a_package_is_downloaded_once(tmp_path: Path) -> None:
    told: list[str] = []
    manual = Documentation(sources=("python3.11-doc",), cache=tmp_path)
    texts, made = manual.texts(report=told.append)
    assert told[0] == "downloading python3.11-doc"
    assert len(texts) > 400
    assert made.licences == ["PSF-2.0"]
    assert manual.texts(report=told.append) == (texts, made)
    assert told.count("downloading python3.11-doc") == 1


def test_an_unknown_licence_is_not_guessed() -> None:
    assert licences("All rights are somewhere.") == []
    assert licences("PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2\n----") == ["PSF-2.0"]
