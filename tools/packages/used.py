"""The packages that data are made of, and what a manifest says of those that were used."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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

    def _note(self, name: str, version: str, path: Path, sha256: str, licences: list[str]) -> None:
        about = {"name": name, "version": version, "file": path.name, "sha256": sha256}
        self.used.append({**about, "licences": licences})
