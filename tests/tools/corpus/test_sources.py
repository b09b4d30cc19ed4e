from pathlib import Path

import pytest

from tests.tools.corpus.text import write_text
from tools.corpus.sources import VALIDATION_SHARE, Document, identity, load
from train.errors import DataError


def nothing(text: str) -> None:
    pass


def test_the_split_is_stable_and_of_the_right_size() -> None:
    documents = [Document(path=f"linux-doc-6.1/mm/{n}.rst", text="") for n in range(5000)]
    held_out = [document.path for document in documents if document.is_validation]
    assert abs(len(held_out) / 5000 - VALIDATION_SHARE) < 0.01
    # Golden: if it changes, text that a model was trained on moves into validation.
    assert held_out[:3] == GOLDEN


GOLDEN = [f"linux-doc-6.1/mm/{number}.rst" for number in (22, 27, 96)]


def test_a_directory_is_a_source(tmp_path: Path) -> None:
    directory = write_text(tmp_path / "notes", num_documents=8)
    (directory / "image.png").write_bytes(b"PNG")
    source = load(str(directory), cache=tmp_path, report=nothing)
    assert len(source.documents) == 8
    assert source.documents[0].path.startswith("notes/mail/")
    assert source.documents[0].subject == "mail"
    assert source.manifest["name"] == "notes"
    assert source.manifest["licences"] == []


def test_a_directory_is_identified_by_its_text(tmp_path: Path) -> None:
    first = write_text(tmp_path / "a", num_documents=4)
    second = write_text(tmp_path / "b", num_documents=4)
    assert identity(str(first)) == identity(str(second))
    (second / "more.txt").write_text("x")
    assert identity(str(first)) != identity(str(second))
    assert identity("linux-doc-6.1") == "linux-doc-6.1"


def test_an_unknown_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no source nowhere: name a directory .* linux-doc-6\.1"):
        load("nowhere", cache=tmp_path, report=nothing)


def test_a_directory_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no English text files"):
        load(str(tmp_path), cache=tmp_path, report=nothing)


def test_damaged_gzip_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.txt.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match=r"x\.txt\.gz is not sound gzip"):
        load(str(tmp_path), cache=tmp_path, report=nothing)
