"""A cache of packages as downloads leave it, with hand-made contents."""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from tools.packages.debian import INDEX
from tools.packages.used import Packages

INDEX_TEXT = """\
Package: libcalc
Source: calc (2.14)
Version: 2.14.1-1
Maintainer: A Person <a@example.org>
Architecture: amd64
Section: contrib/science
Installed-Size: 120
Depends: libc6 (>= 2.34), libreadline8 | libedit2, python3:any
Description-md5: 1

Package: toys
Version: 1.0-2
Maintainer: B Person <b@example.org>
Architecture: all
Section: games
Installed-Size: 7
Description-md5: 2

Package: untold
Version: 1
Section: games
Description-md5: 3

Package: libcalc
Description-md5: 1
Description-en: arbitrary precision calculator
 Calc is a calculator of arbitrary precision that reads a language
 much like C.
 .
 This package has the library.

Package: toys
Description-md5: 2
Description-en: toys to play with
 Some toys that people play with when the weather is bad.
"""


def keep(path: Path, content: bytes) -> None:
    """Put a file where a download would have left it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.with_suffix(".sha256").write_text(hashlib.sha256(content).hexdigest() + "\n")


def keep_index(cache: Path, text: str = INDEX_TEXT) -> None:
    """Keep lists of Debian packages."""
    keep(cache / INDEX / "index.gz", gzip.compress(text.encode()))


def keep_npm(cache: Path, name: str, version: str, files: Mapping[str, str | bytes]) -> Path:
    """Keep a package of npm; returns its archive."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for path, text in {"LICENSE": "Do as you like.", **files}.items():
            data = text if isinstance(text, bytes) else text.encode()
            member = tarfile.TarInfo(f"package/{path}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    archive_path = cache / "npm" / f"{name}-{version}" / f"{Path(name).name}-{version}.tgz"
    keep(archive_path, content.getvalue())
    return archive_path


def packages(cache: Path) -> Packages:
    """Packages that are all cached."""

    def report(told: str) -> None:
        raise AssertionError(f"a cached package must not be downloaded: {told}")

    return Packages(cache=cache, report=report)
