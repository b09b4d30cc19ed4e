"""Debian packages and package lists: downloaded without root, read without being installed."""

import gzip
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from tools.packages.kept import kept, last_line, program, run
from train.errors import DataError

INDEX: Final = "debian-index"
"""What the cache calls the lists of packages and of their descriptions."""
_NO_DEBIAN: Final = "so none of Debian can be read here; give tools.corpus text as prose:DIRECTORY."


def obtain(
    name: str, *, cache: Path, report: Callable[[str], None], lists: Path | None = None
) -> tuple[Path, str]:
    """The file of a package, from the cache or else from the machine's own Debian mirror.

    Args:
        name: of the package, such as `linux-doc-6.1`.
        cache: directory that keeps package files.
        report: told what is being done.
        lists: directory of the mirror's lists, which are fetched where it has none; by default
            they are fetched, and forgotten.

    Returns:
        Its path and its SHA-256.

    Raises:
        DataError: it is not cached and cannot be downloaded.
    """
    download = partial(_download, name, lists)
    return kept(cache / name, "*.deb", download, name=name, report=report)


def index(*, cache: Path, report: Callable[[str], None]) -> tuple[Path, str]:
    """The lists of all packages and of their English descriptions, one behind the other, gzipped.

    Returns:
        Path and SHA-256 of a file for `stanzas`.

    Raises:
        DataError: it is not cached and cannot be downloaded.
    """
    name = "the lists of Debian packages"
    return kept(cache / INDEX, "*.gz", _download_index, name=name, report=report)


def stanzas(path: Path) -> Iterator[Mapping[str, str]]:
    """The stanzas of package lists: fields by name, further lines as they are.

    Args:
        path: of a gzipped file, such as `index` gives.
    """
    fields: dict[str, str] = {}
    name = ""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            line = line.rstrip("\n")
            if not line:
                if fields:
                    yield fields
                fields = {}
            elif line[0] in " \t":
                fields[name] += f"\n{line}"
            else:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
    if fields:
        yield fields


def files(package: Path, *, wanted: Callable[[str], bool]) -> Generator[tuple[str, bytes]]:
    """The wanted regular files of a package with their contents.

    Args:
        package: file to read.
        wanted: told a path such as `usr/share/doc/x/copyright`.

    Raises:
        DataError: the file is no sound package, or `dpkg-deb` is missing.
    """
    with tempfile.TemporaryFile() as unpacked:
        command = [program("dpkg-deb", _NO_DEBIAN), "--fsys-tarfile", str(package)]
        done = subprocess.run(command, stdout=unpacked, stderr=subprocess.PIPE, check=False)
        if done.returncode:
            raise DataError(
                f"{package} is not a sound package, or there is no room to unpack it in TMPDIR "
                f"({last_line(done.stderr.decode())}); make room, or delete it and build again."
            )
        unpacked.seek(0)
        with tarfile.open(fileobj=unpacked) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                content = archive.extractfile(member) if member.isreg() else None
                if content is not None and wanted(name):
                    yield name, content.read()


def unpack(package: Path, directory: Path) -> None:
    """Unpack all files of a package below a directory, as they would lie below `/`.

    Raises:
        DataError: the file is no sound package, there is no room, or `dpkg-deb` is missing.
    """
    directory.mkdir(parents=True, exist_ok=True)
    dpkg = program("dpkg-deb", "so Debian packages cannot be read here.")
    done = run([dpkg, "--extract", str(package), str(directory)], directory)
    if done.returncode:
        raise DataError(
            f"{package} is not a sound package, or there is no room to unpack it in {directory} "
            f"({last_line(done.stderr)}); make room, or delete it and build again."
        )


def lacking(names: Sequence[str], *, cache: Path, report: Callable[[str], None]) -> list[str]:
    """What would have to be installed here so that packages run, they themselves among it.

    Args:
        names: of the packages.
        cache: directory that keeps package files.
        report: told what is being done.

    Raises:
        DataError: the mirror cannot be asked.
    """
    report(f"asking what {' and '.join(names)} need")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        apt = _apt(Path(scratch), Path(scratch) / "lists")
        run([*apt, "--option=Acquire::Languages=none", "--quiet", "update"], Path(scratch))
        # Nothing is locked: only root may, and nothing is installed.
        asked = [*apt, "--option=Debug::NoLocking=1", "--no-install-recommends", "--simulate"]
        done = run([*asked, "install", *names], Path(scratch))
    if done.returncode:
        raise DataError(
            f"Could not learn from Debian's mirror what {names[0]} needs ({last_line(done.stderr)})"
            "; check the network and the mirror in /etc/apt."
        )
    return re.findall(r"^Inst (\S+)", done.stdout, re.MULTILINE)


def version(path: Path) -> str:
    """The version in a package file's name, where apt writes an epoch's colon as %3a."""
    return path.name.split("_")[1].replace("%3a", ":") if "_" in path.name else "unknown"


def licences(copyright_text: str) -> list[str]:
    """The licences that a package's copyright file names for its documentation.

    In Debian's machine-readable format, those of the stanzas for all files or for documentation;
    otherwise the well-known licences whose titles occur.
    """
    found: list[str] = []
    for stanza in re.split(r"\n\s*\n", copyright_text):
        fields = re.search(r"^Files:((?:.*\n?)(?:[ \t]+.*\n?)*)", stanza, re.MULTILINE)
        licence = re.search(r"^License:[ \t]*(\S.*)$", stanza, re.MULTILINE)
        if fields and licence:
            patterns = fields[1].split()
            if "*" in patterns or any(p.startswith("Documentation/") for p in patterns):
                found.append(licence[1].strip())
    if not found and "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2" in copyright_text:
        found.append("PSF-2.0")
    return sorted(set(found))


def _download(name: str, lists: Path | None, scratch: Path) -> Path:
    """Download with a package index of our own, which needs neither root nor a recent update."""
    lists = lists or scratch / "lists"
    apt = _apt(scratch, lists)
    failed = ""
    if not any(lists.glob("*_Packages*")):
        # One source of many that fails is no reason to stop: the package decides.
        updated = run([*apt, "--option=Acquire::Languages=none", "--quiet", "update"], scratch)
        failed = last_line(updated.stderr)
    result = run([*apt, "--quiet", "download", name], scratch)
    found = sorted(scratch.glob("*.deb"))
    if result.returncode != 0 or not found:
        reason = last_line(result.stderr) or failed or "no package came"
        raise DataError(
            f"Could not download the Debian package {name} ({reason}). Check the network and the "
            f"mirror in /etc/apt, or put its .deb and a .sha256 beside it into "
            f"{scratch.parent}, or give tools.corpus a directory of text as prose:DIRECTORY."
        )
    return found[0]


def _download_index(scratch: Path) -> Path:
    """A system may leave translations out and pack its lists; these come as we want them."""
    wanted = ("--option=Acquire::Languages=en", "--option=Acquire::GzipIndexes=false")
    apt = _apt(scratch, scratch / "lists")
    updated = run([*apt, *wanted, "--quiet", "update"], scratch)
    descriptions = sorted((scratch / "lists").glob("*_Translation-en"))
    packages = sorted((scratch / "lists").glob("*_Packages"))
    if not descriptions or not packages:
        reason = last_line(updated.stderr) or "no lists came"
        raise DataError(
            f"Could not download the lists of Debian packages with their descriptions ({reason}). "
            "Check the network and the mirror in /etc/apt."
        )
    path = scratch / "index.gz"
    # Without a time in its head, the same lists make the same file.
    with path.open("wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
        for each in (*packages, *descriptions):
            packed.write(each.read_bytes() + b"\n")
    return path


def _apt(scratch: Path, lists: Path) -> list[str]:
    for directory in (lists / "partial", scratch / "archives/partial"):
        directory.mkdir(parents=True, exist_ok=True)
    options = (
        f"Dir::State::Lists={lists}",
        "Dir::State::status=/var/lib/dpkg/status",
        f"Dir::Cache={scratch}",
        f"Dir::Cache::Archives={scratch / 'archives'}",
        # As root, apt would change to a user that cannot write here.
        "APT::Sandbox::User=root",
        "Acquire::Retries=2",
        "Acquire::http::Timeout=30",
        "Acquire::https::Timeout=30",
    )
    return [program("apt-get", _NO_DEBIAN), *(f"--option={option}" for option in options)]
