"""The packages that tasks are made of, and what a manifest says of those that were used."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.packages import debian, npm, pypi


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

    def debian(self, name: str) -> Path:
        """A Debian package."""
        path, sha256 = debian.obtain(name, cache=self.cache, report=self.report)
        place = f"usr/share/doc/{name}/copyright"
        texts = [content for _, content in debian.files(path, wanted=lambda p: p == place)]
        text = b"".join(texts).decode(errors="replace")
        self.licence_texts[name] = text
        self._note(name, debian.version(path), path, sha256, debian.licences(text))
        return path

    def npm(self, name: str, version: str, *, licence: str) -> Path:
        """A package of npm, under the licence that its package.json names."""
        path, sha256 = npm.obtain(name, version, cache=self.cache, report=self.report)
        self.licence_texts[name] = npm.content(path, "LICENSE").decode(errors="replace")
        self._note(name, version, path, sha256, [licence])
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
