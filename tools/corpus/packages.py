"""Debian packages as sources of text: downloaded without root, read without being installed."""

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final

from train.errors import DataError
from train.storage.path import user_cache

DOWNLOAD_TIMEOUT_SECONDS: Final = 300.0


def package_cache() -> Path:
    """Where downloaded packages are kept, so that a second build needs no network."""
    return user_cache("packages")


def obtain(name: str, *, cache: Path, report: Callable[[str], None]) -> tuple[Path, str]:
    """The file of a package, from the cache or else from the machine's own Debian mirror.

    Args:
        name: of the package, such as `linux-doc-6.1`.
        cache: directory that keeps package files.
        report: told what is being done.

    Returns:
        Its path and its SHA-256.

    Raises:
        DataError: it is not cached and cannot be downloaded.
    """
    directory = cache / name
    for path in sorted(directory.glob("*.deb")):
        note = path.with_suffix(".sha256")
        digest = _sha256(path)
        # A file without its note was left by a download that was cut off.
        if note.is_file() and note.read_text().strip() == digest:
            return path, digest
    report(f"downloading {name}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"Cannot keep packages in {cache} ({error.strerror}); set XDG_CACHE_HOME to a "
            "directory that can be written."
        ) from error
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        downloaded = _download(name, Path(scratch))
        path = directory / downloaded.name
        digest = _sha256(downloaded)
        path.with_suffix(".sha256").write_text(digest + "\n")
        os.replace(downloaded, path)
    return path, digest


def files(package: Path, *, wanted: Callable[[str], bool]) -> Generator[tuple[str, bytes]]:
    """The wanted regular files of a package with their contents.

    Args:
        package: file to read.
        wanted: told a path such as `usr/share/doc/x/copyright`.

    Raises:
        DataError: the file is no sound package, or `dpkg-deb` is missing.
    """
    with tempfile.TemporaryFile() as unpacked:
        command = [_program("dpkg-deb"), "--fsys-tarfile", str(package)]
        done = subprocess.run(command, stdout=unpacked, stderr=subprocess.PIPE, check=False)
        if done.returncode:
            raise DataError(
                f"{package} is not a sound package, or there is no room to unpack it in TMPDIR "
                f"({_last_line(done.stderr.decode())}); make room, or delete it and build again."
            )
        unpacked.seek(0)
        with tarfile.open(fileobj=unpacked) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                content = archive.extractfile(member) if member.isreg() else None
                if content is not None and wanted(name):
                    yield name, content.read()


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


def _download(name: str, scratch: Path) -> Path:
    """Download with a package index of our own, which needs neither root nor a recent update."""
    for directory in ("lists/partial", "archives/partial"):
        (scratch / directory).mkdir(parents=True)
    apt = [_program("apt-get")]
    for option in (
        f"Dir::State::Lists={scratch / 'lists'}",
        "Dir::State::status=/var/lib/dpkg/status",
        f"Dir::Cache={scratch}",
        f"Dir::Cache::Archives={scratch / 'archives'}",
        # As root, apt would change to a user that cannot write here.
        "APT::Sandbox::User=root",
        "Acquire::Retries=2",
        "Acquire::http::Timeout=30",
        "Acquire::https::Timeout=30",
        "Acquire::Languages=none",
    ):
        apt += ["-o", option]
    # One source of many that fails is no reason to stop: the package decides.
    updated = _run([*apt, "--quiet", "update"], scratch)
    result = _run([*apt, "--quiet", "download", name], scratch)
    found = sorted(scratch.glob("*.deb"))
    if result.returncode != 0 or not found:
        reason = _last_line(result.stderr) or _last_line(updated.stderr) or "no package came"
        raise DataError(
            f"Could not download the Debian package {name} ({reason}). Check the network and the "
            f"mirror in /etc/apt, or put its .deb and a .sha256 beside it into "
            f"{scratch.parent}, or name a directory of text as prose:DIRECTORY."
        )
    return found[0]


def _run(command: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            cwd=directory,
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_TIMEOUT_SECONDS,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(
            f"{' '.join(command[-2:])} took longer than {DOWNLOAD_TIMEOUT_SECONDS:g} s; check the "
            "network and the mirror in /etc/apt, and build again."
        ) from error


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise DataError(
            f"{name} is missing, so Debian packages cannot be read here; name a directory of text "
            "as prose:DIRECTORY."
        )
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("W:")]
    return lines[-1].strip() if lines else ""
