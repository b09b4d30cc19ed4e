"""The packages that data are made of, and what a manifest says of those that were used."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from tools.packages import debian, npm, pypi
from train.errors import DataError


@dataclass(kw_only=True)
class Packages:
    """Gives packages, and notes which.

    Attributes:
        cache: keeps downloaded files.
        report: told what is being done.
        used: for the manifest: name, version, file, SHA-256 and licences of each.
        licence_texts: by name.
    """

    cache: Path
    report: Callable[[str], None]
    used: list[dict[str, Any]] = field(default_factory=list)
    licence_texts: dict[str, str] = field(default_factory=dict)

    def debian_index(self) -> Path:
        """The lists of all Debian packages and of their descriptions."""
        path, sha256 = debian.index(cache=self.cache, report=self.report)
        # The lists themselves name no licence; a description is under that of its package.
        self._note("Debian's package lists", "", path, sha256, ["each package's own"])
        return path

    def debian(self, name: str, *, licences: Sequence[str] = (), lists: Path | None = None) -> Path:
        """A Debian package, under the licences that are given or that its copyright file names.

        Args:
            name: of the package.
            licences: of what is used of it.
            lists: directory that keeps the mirror's lists from one package to the next.
        """
        path, sha256 = debian.obtain(name, cache=self.cache, report=self.report, lists=lists)
        place = f"usr/share/doc/{name}/copyright"
        texts = [content for _, content in debian.files(path, wanted=lambda p: p == place)]
        text = b"".join(texts).decode(errors="replace")
        self.licence_texts[name] = text
        found = [*licences] or debian.licences(text)
        self._note(name, debian.version(path), path, sha256, found)
        return path

    def npm(
        self,
        name: str,
        version: str,
        *,
        licence: str,
        told_in: Sequence[str] = ("LICENSE",),
        sha256: str | None = None,
    ) -> Path:
        """A package of npm.

        Args:
            name: of the package.
            version: the very one.
            licence: that its package.json names, or of the part that is used.
            told_in: files of the package that tell the terms.
            sha256: of the archive, where another content would not do.

        Raises:
            DataError: it cannot be had, is damaged, or is not what it was.
        """
        path, found = npm.obtain(name, version, cache=self.cache, report=self.report)
        if sha256 not in (None, found):
            raise DataError(
                f"{path}: its SHA-256 is {found:.16}… and not the {sha256:.16}… that {name} "
                f"{version} is known by: it was altered, here or on its way; delete it, and build "
                "again"
            )
        texts = [npm.content(path, file).decode(errors="replace") for file in told_in]
        self.licence_texts[name] = "\n\n".join(texts)
        self._note(name, version, path, found, [licence])
        return path

    def pypi(self, name: str, version: str, *, licence: str) -> Path:
        """A wheel of PyPI, under the licence that its metadata name."""
        path, sha256 = pypi.obtain(name, version, cache=self.cache, report=self.report)
        self.licence_texts[name] = pypi.licence(path)
        self._note(name, version, path, sha256, [licence])
        return path

    def installed(self, name: str, version: str, *, licence: str, extra: str) -> None:
        """A package that is installed beside this one, as an extra.

        Raises:
            DataError: it is not, or of another version.
        """
        remedy = (
            f"install the extra {extra}: pip install --constraint constraints.txt -e '.[{extra}]'"
        )
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            raise DataError(f"{name} {version} is not installed: {remedy}") from None
        if found.version != version:
            raise DataError(f"{name} is {found.version} here, and {version} is wanted: {remedy}")
        # What pip notes of each file, but for what it has made itself.
        files = sorted(
            f"{file},{file.hash.value}"
            for file in found.files or ()
            if file.hash is not None and file.parts[0] == name
        )
        digest = hashlib.sha256("\n".join(files).encode()).hexdigest()
        texts = [file.read_text() for file in found.files or () if "LICEN" in file.name.upper()]
        self.licence_texts[name] = "\n\n".join(texts)
        self._note(name, version, Path(f"{name}-{version}.dist-info/RECORD"), digest, [licence])

    def _note(self, name: str, version: str, path: Path, sha256: str, licences: list[str]) -> None:
        about = {"name": name, "version": version, "file": path.name, "sha256": sha256}
        self.used.append({**about, "licences": licences})
