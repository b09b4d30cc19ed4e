"""Packages of npm."""

import json
import tarfile
import zlib
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

from tools.packages.kept import kept, last_line, program, run
from train.errors import DataError


def obtain(
    name: str, version: str, *, cache: Path, report: Callable[[str], None]
) -> tuple[Path, str]:
    """The archive of a package, from the cache or else from the registry.

    Raises:
        DataError: it is not cached and cannot be downloaded.
    """
    directory = cache / "npm" / f"{name}-{version}"
    wanted = f"{name}@{version}"
    return kept(directory, "*.tgz", partial(_download, wanted), name=wanted, report=report)


def content(package: Path, name: str) -> bytes:
    """A file of a package, such as `dict/data.noun`.

    Raises:
        DataError: there is none, or the package is damaged.
    """
    try:
        with tarfile.open(package, "r:gz") as archive:
            file = archive.extractfile(f"package/{name}")
            if file is not None:
                return file.read()
    except (KeyError, tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"{package} has no sound {name} ({error}); delete it, and build again."
        ) from error
    raise DataError(f"{package} has no file {name}; delete it, and build again.")


def files(package: Path, *, below: str) -> Generator[tuple[str, bytes]]:
    """The regular files below a directory of a package, by their names there, with their contents.

    Args:
        package: file to read.
        below: directory, such as `img/64`.

    Raises:
        DataError: the package is damaged; what comes before the damage has been given.
    """
    begin = f"package/{below}/"
    try:
        with tarfile.open(package, "r:gz") as archive:
            for member in archive:
                if member.isreg() and member.name.startswith(begin):
                    content = archive.extractfile(member)
                    assert content is not None, "a regular file has a content"
                    yield member.name.removeprefix(begin), content.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{package} is no sound archive ({error}); delete it, and build again."
        ) from error


def _download(wanted: str, scratch: Path) -> Path:
    npm = program("npm", "so packages of npm cannot be had here; install it.")
    done = run([npm, "pack", "--json", wanted], scratch)
    found = sorted(scratch.glob("*.tgz"))
    if done.returncode or not found:
        reason = _summary(done.stdout) or last_line(done.stderr) or "no package came"
        raise DataError(f"Could not download {wanted} from npm ({reason}); check the network.")
    return found[0]


def _summary(output: str) -> str:
    try:
        return str(json.loads(output)["error"]["summary"]).strip()
    except (ValueError, KeyError, TypeError):
        return ""
