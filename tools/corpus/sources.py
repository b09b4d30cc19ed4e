"""Where documents come from: packages that this module knows, or a directory of text."""

import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tools.corpus.packages import Package, files, licences, obtain
from train.errors import DataError

TEXT_SUFFIXES: Final = (".rst", ".txt", ".md")
VALIDATION_SHARE: Final = 0.03


@dataclass(frozen=True, kw_only=True)
class Document:
    """One document.

    Attributes:
        path: source and path inside it; without a version, so that an update keeps the split.
        text: as written, with its markup.
    """

    path: str
    text: str

    @property
    def is_validation(self) -> bool:
        """Whether it belongs to the validation split; stable whatever else is in the corpus."""
        digest = hashlib.sha256(f"split:{self.path}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < VALIDATION_SHARE * 2**64

    @property
    def subject(self) -> str:
        """The part of the source that it stands in, such as `networking`."""
        parts = self.path.split("/")
        return parts[1].replace("-", " ").replace("_", " ") if len(parts) > 2 else "overview"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Documents, and what the manifest says about where they come from.

    Attributes:
        documents: in the order of the source.
        manifest: name, licences, hashes.
        licence_text: the copyright file, if there is one.
        warnings: for the user.
    """

    documents: list[Document]
    manifest: dict[str, Any]
    licence_text: str | None = None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Which files of a package are English documents."""

    root: str
    suffixes: tuple[str, ...]
    left_out: tuple[str, ...] = ()


PACKAGES: Final = {
    "linux-doc-6.1": _Layout(
        root="usr/share/doc/linux-doc-6.1/Documentation/",
        suffixes=(".rst.gz", ".rst", ".txt.gz", ".txt"),
        # Not English; tables of hardware properties, one for each chip.
        left_out=("translations/", "devicetree/bindings/"),
    ),
    "python3.11-doc": _Layout(
        root="usr/share/doc/python3.11/html/_sources/", suffixes=(".rst.txt",)
    ),
}
"""The packages that a corpus is built from unless other sources are named."""


def load(name: str, *, cache: Path, report: Callable[[str], None]) -> Source:
    """The documents of a known package, or of a directory.

    Args:
        name: a key of `PACKAGES`, or the path of a directory with .rst, .txt or .md files.
        cache: keeps downloaded packages.
        report: told what is being done.

    Raises:
        DataError: the source is unknown, cannot be had, or holds no text.
    """
    if name in PACKAGES:
        source = _from_package(obtain(name, cache=cache, report=report), PACKAGES[name])
    elif Path(name).expanduser().is_dir():
        source = _from_directory(Path(name).expanduser().resolve())
    else:
        raise DataError(
            f"There is no source {name}: name a directory of text, or one of {', '.join(PACKAGES)}."
        )
    if not source.documents:
        raise DataError(
            f"The source {name} holds no English text files ({', '.join(TEXT_SUFFIXES)})."
        )
    return source


def identity(name: str) -> str:
    """What a source is, for telling whether a corpus was built from the same one.

    A package is itself whatever its version: a finished corpus is not rebuilt because a mirror
    moved on. A directory is the content of its text files.
    """
    directory = Path(name).expanduser()
    if name in PACKAGES or not directory.is_dir():
        return name
    digest = hashlib.sha256()
    for path, content in _text_files(directory):
        digest.update(f"{path}\0{len(content)}\0".encode() + content)
    return f"directory sha256:{digest.hexdigest()}"


def _from_package(package: Package, layout: _Layout) -> Source:
    copyright_path = f"usr/share/doc/{package.name}/copyright"

    def wanted(path: str) -> bool:
        inner = path.removeprefix(layout.root)
        return path == copyright_path or (
            inner != path
            and inner.endswith(layout.suffixes)
            and not inner.startswith(layout.left_out)
        )

    documents: list[Document] = []
    copyright_text: str | None = None
    for path, content in files(package, wanted=wanted):
        if path == copyright_path:
            copyright_text = content.decode(errors="replace")
            continue
        name = f"{package.name}/{path.removeprefix(layout.root).removesuffix('.gz')}"
        documents.append(Document(path=name, text=_decode(content, path)))
    warnings = [package.warning] if package.warning else []
    found = licences(copyright_text or "")
    if not found:
        warnings.append(f"No licence was recognised in the copyright file of {package.name}.")
    return Source(
        documents=documents,
        manifest={
            "name": package.name,
            "kind": "debian-package",
            "version": package.version,
            "file": package.path.name,
            "sha256": package.sha256,
            "licences": found,
        },
        licence_text=copyright_text,
        warnings=warnings,
    )


def _from_directory(directory: Path) -> Source:
    documents = [
        Document(path=f"{directory.name}/{path}", text=_decode(content, path))
        for path, content in _text_files(directory)
    ]
    return Source(
        documents=documents,
        manifest={
            "name": directory.name,
            "kind": "directory",
            "identity": identity(str(directory)),
            "licences": [],
        },
    )


def _text_files(directory: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name.removesuffix(".gz").endswith(TEXT_SUFFIXES):
            yield path.relative_to(directory).as_posix(), path.read_bytes()


def _decode(content: bytes, path: str) -> str:
    if path.endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} is not sound gzip ({error}); get its source again.") from error
    return content.decode(errors="replace")
