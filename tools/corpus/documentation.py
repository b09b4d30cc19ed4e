"""Documentation as a source: Debian packages, or directories of text, reduced to their prose."""

import gzip
import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final

from tools.corpus import inputs, prose
from tools.corpus.entries import RowError
from tools.corpus.left_out import LeftOut, shown
from tools.corpus.made import Made
from tools.corpus.part import split_of
from tools.corpus.reading import decoded
from tools.packages.debian import files, licences, obtain, version
from train.errors import DataError
from train.storage.place import Place

PREFIX: Final = "prose:"
"""Before the path of a directory whose text is to be reduced likewise."""
TEXT_SUFFIXES: Final = (".rst", ".txt", ".md")
VALIDATION_SHARE: Final = 0.03


@dataclass(frozen=True, kw_only=True)
class _Tree:
    """Which files of a package are English documents, and the package that was measured."""

    root: str
    suffixes: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    measured_sha256: str


PACKAGES: Final = {
    "linux-doc-6.1": _Tree(
        root="usr/share/doc/linux-doc-6.1/Documentation/",
        suffixes=(".rst.gz", ".rst", ".txt.gz", ".txt"),
        # Not English; tables of hardware properties, one for each chip.
        left_out=("translations/", "devicetree/bindings/"),
        # 6.1.192-2
        measured_sha256="d1d1b5a602f0d439ecc39e713e044bf2df30d839fb4bf8a7b859ba3273c47993",
    ),
    "python3.11-doc": _Tree(
        root="usr/share/doc/python3.11/html/_sources/",
        suffixes=(".rst.txt",),
        # 3.11.2-6+deb12u9
        measured_sha256="5b3594189d6ef9a6963ce0347fd307a1cc67620ad697e144db366070e2e146be",
    ),
}
"""The packages that a corpus is built from unless other sources are named."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """The prose of one document.

    Attributes:
        path: source and path inside it; without a version, so that an update keeps the split.
        paragraphs: in order, titles too.
    """

    path: str
    paragraphs: list[prose.Paragraph]

    @property
    def split(self) -> str:
        """Where it belongs, whatever else is in the corpus."""
        return split_of(self.path, VALIDATION_SHARE)

    @property
    def subject(self) -> str:
        """The part of the source that it stands in, such as `networking`."""
        parts = self.path.split("/")
        return parts[1].replace("-", " ").replace("_", " ") if len(parts) > 2 else "overview"


@dataclass(frozen=True, kw_only=True)
class Documentation:
    """Packages and directories, mixed.

    Attributes:
        sources: keys of `PACKAGES`, or `prose:DIRECTORY`.
        cache: keeps downloaded packages.
        limit_megabytes: of training text; None for all there is.
    """

    sources: tuple[str, ...]
    cache: Path
    limit_megabytes: float | None = None
    name: str = "documentation"

    @property
    def names(self) -> tuple[str, ...]:
        """First parts of the ids of documents."""
        return tuple(
            source if source in PACKAGES else _directory(source).name for source in self.sources
        )

    @property
    def identity(self) -> str:
        """What tells whether a corpus was built from the same.

        A package is itself whatever its version: a finished corpus is not rebuilt because a mirror
        moved on. A directory is the content of its text files.

        Raises:
            DataError: a directory is missing, or a source has the name of another, and documents
                would share their ids.
        """
        name, count = Counter(self.names).most_common(1)[0]
        if count > 1:
            raise DataError(f"Two sources are called {name}; rename a directory, or name it once.")
        found = hashlib.sha256(f"{prose.VERSION} {self.limit_megabytes}".encode())
        for source in self.sources:
            found.update(f"\0{source}\0".encode() if source in PACKAGES else b"\0\0")
            for path, content in [] if source in PACKAGES else _text_files(source, LeftOut()):
                found.update(f"{path}\0{len(content)}\0".encode() + content)
        return found.hexdigest()

    def make(self, report: Callable[[str], None]) -> Made:
        """Make a record of each document, those of all sources mixed by the hash of their path.

        Raises:
            DataError: a source cannot be had, or holds no prose.
        """
        texts, made = self.texts(report)
        records = (
            {
                "id": text.path,
                "split": text.split,
                "text": "\n\n".join(paragraph.text for paragraph in text.paragraphs),
            }
            for text in self._limited(texts, made.left_out)
        )
        return replace(made, records=records)

    def texts(self, report: Callable[[str], None]) -> tuple[list[Text], Made]:
        """The documents that hold prose, by the hash of their path, and what they were made of.

        Raises:
            DataError: a source cannot be had, or holds no text.
        """
        documents: list[tuple[str, str]] = []
        described: list[dict[str, Any]] = []
        licence_texts: dict[str, str] = {}
        left_out = LeftOut()
        for source in self.sources:
            found, about, licence_text = (
                _from_package(source, self.cache, report, left_out)
                if source in PACKAGES
                else _from_directory(source, left_out)
            )
            if not found:
                raise DataError(
                    f"The source {source} holds no English text files ({', '.join(TEXT_SUFFIXES)})."
                )
            documents += found
            described.append({"source": source, **about})
            if licence_text is not None:
                licence_texts[about["name"]] = licence_text
        # Neighbours are then unrelated, and a corpus cut short still has every subject.
        documents.sort(key=lambda document: hashlib.sha256(document[0].encode()).digest())
        texts = [Text(path=path, paragraphs=prose.paragraphs(text)) for path, text in documents]
        kept: list[Text] = []
        for text in texts:
            if any(not part.is_title for part in text.paragraphs):
                kept.append(text)
            else:
                left_out.add("no prose", text.path)
        return kept, Made(described=described, licence_texts=licence_texts, left_out=left_out)

    def _limited(self, texts: Sequence[Text], left_out: LeftOut) -> Iterator[Text]:
        """The first documents of each split up to the limit, at least one of each."""
        limit = float("inf") if self.limit_megabytes is None else self.limit_megabytes * 1e6
        left = {"train": max(limit, 1), "validation": max(limit * VALIDATION_SHARE, 1)}
        for text in texts:
            if left[text.split] > 0:
                yield text
                left[text.split] -= sum(len(paragraph.text) for paragraph in text.paragraphs)
            else:
                left_out.add("beyond --limit-megabytes", text.path)


_Found = tuple[list[tuple[str, str]], dict[str, Any], str | None]
"""Paths and texts of documents; what the manifest says of their source; its copyright file."""


def is_documentation(source: str) -> bool:
    """Whether a source is a known package, or a directory to be reduced to prose."""
    return source in PACKAGES or source.startswith(PREFIX)


def _from_package(
    name: str, cache: Path, report: Callable[[str], None], left_out: LeftOut
) -> _Found:
    tree = PACKAGES[name]
    package, sha256 = obtain(name, cache=cache, report=report)
    copyright_path = f"usr/share/doc/{name}/copyright"

    def wanted(path: str) -> bool:
        inner = path.removeprefix(tree.root)
        return path == copyright_path or (
            inner != path and inner.endswith(tree.suffixes) and not inner.startswith(tree.left_out)
        )

    documents: list[tuple[str, str]] = []
    copyright_text: str | None = None
    for path, content in files(package, wanted=wanted):
        if path == copyright_path:
            copyright_text = content.decode(errors="replace")
            continue
        inner = path.removeprefix(tree.root).removesuffix(".gz")
        try:
            documents.append((f"{name}/{inner}", decoded(_unpacked(content, path), path)))
        except RowError:
            left_out.add("not UTF-8", f"{name}/{inner}")
    found = licences(copyright_text or "")
    if sha256 != tree.measured_sha256:
        report(
            f"warning: {name} is version {version(package)} with SHA-256 {sha256:.12}…, not the "
            f"{tree.measured_sha256:.12}… that this repository was measured with; its text, and so "
            "the losses, may differ a little."
        )
    if not found:
        report(f"warning: no licence was recognised in the copyright file of {name}")
    about = {
        "name": name,
        "version": version(package),
        "file": package.name,
        "sha256": sha256,
        "licences": found,
    }
    return documents, about, copyright_text


def _from_directory(source: str, left_out: LeftOut) -> _Found:
    name = _directory(source).name
    try:
        documents = [
            (f"{name}/{path}", decoded(_unpacked(content, path), path))
            for path, content in _text_files(source, left_out)
        ]
    except RowError as error:
        raise DataError(f"{error}; mend it, or take it out of {source}") from error
    return documents, {"name": name, "licences": []}, None


def _directory(source: str) -> Place:
    directory = inputs.placed(source.removeprefix(PREFIX))
    if not directory.is_remote:
        directory = Place.of(Path(directory).resolve())
        if not Path(directory).is_dir():
            raise DataError(
                f"There is no source {source}: name a directory of text behind {PREFIX}, or one of "
                f"{', '.join(PACKAGES)}."
            )
    return directory


def _text_files(source: str, left_out: LeftOut) -> Iterator[tuple[str, bytes]]:
    """The text files of a directory, each once; what else is there is left out."""
    directory = _directory(source)
    listed = inputs.listing(str(directory))
    seen: set[Any] = set()
    for file in sorted(listed.files, key=lambda file: PurePosixPath(file.name).parts):
        if not file.name.removesuffix(".gz").endswith(TEXT_SUFFIXES):
            reason = PurePosixPath(file.name).suffix.lower() or "no suffix"
        elif shown(file.name) != file.name:
            raise DataError(f"the name of the file {shown(file.name)} is not UTF-8; rename it")
        elif file.identity is not None and file.identity in seen:
            reason = "link to a file that is read already"
        else:
            seen.add(file.identity)
            yield file.name, inputs.content(directory / file.name)
            continue
        listed.left_out.add(reason, file.name)
    for reason, names in listed.left_out.items():
        for name in names:
            left_out.add(reason, f"{directory.name}/{name}")


def _unpacked(content: bytes, path: str) -> bytes:
    if not path.endswith(".gz"):
        return content
    try:
        if not content:
            raise EOFError("it has 0 bytes")
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not sound gzip ({error}); get its source again.") from error
