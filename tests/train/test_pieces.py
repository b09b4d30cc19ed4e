"""Files in a store in pieces: what of them is sent, and that they are the files."""

import os
from pathlib import Path

import pytest

from tests.train.mirrors import directory, held
from train import pieces
from train.errors import RunDirectoryError
from train.mirror import Mirror
from train.pieces import Piece
from train.storage.local import LocalPlace
from train.storage.place import Place

METRICS_BYTES, LEDGER_BYTES = 600, 150
"""A step in `metrics.jsonl`, and in one rank's ledger; those of a run of tiny.yaml are less."""


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each file that is written to a place below `store/`."""
    found: list[int] = []
    write = LocalPlace.write

    def counted(self: LocalPlace, data: bytes) -> None:
        if "/store/" in self.path:
            found.append(len(data))
        write(self, data)

    monkeypatch.setattr(LocalPlace, "write", counted)
    monkeypatch.setattr("train.storage.local.settle", lambda path: None)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    return found


def test_what_is_sent_grows_with_a_run_and_not_with_its_square(
    tmp_path: Path, written: list[int]
) -> None:
    """20,000 steps with a checkpoint every 250, of four ranks, started again four times."""
    place = Place.of(tmp_path / "store")
    here = directory(tmp_path / "run", config="a")
    here.ledger.mkdir()
    whole_each_time = pushes = 0
    for start in range(1, 5):
        mirror = Mirror(place, here)
        mirror.bring()
        for _ in range(20):
            files = [here.ledger / f"{start:05d}-{rank:05d}.bin" for rank in range(4)]
            for path, size in [(here.metrics, METRICS_BYTES), *((f, LEDGER_BYTES) for f in files)]:
                with path.open("ab") as file:
                    file.write(os.urandom(250 * size))
                whole_each_time += path.stat().st_size
            mirror.push()
            pushes += 1
    assert pushes * 250 == 20_000
    content = sum(path.stat().st_size for path in (here.metrics, *here.ledger.iterdir()))
    assert content == 20_000 * (METRICS_BYTES + 4 * LEDGER_BYTES)
    assert whole_each_time > 20 * content, "what was sent before"
    assert sum(written) < 4 * content
    assert sum(found.num_bytes for found in place.files()) < 1.01 * content, "nothing is left there"
    keys = [found.name for found in (place / "files").files()]
    assert len([key for key in keys if key.startswith("metrics.jsonl/")]) <= 8
    for path in (here.metrics, *here.ledger.iterdir()):
        assert held(place, path.relative_to(here.path).as_posix()) == path.read_bytes()
    second = directory(tmp_path / "second")
    Mirror(place, second).bring()
    assert second.metrics.read_bytes() == here.metrics.read_bytes()


@pytest.mark.parametrize(
    "after", [b"", b"ab", b"abcd", b"abcdefghi", b"xbcdefgh", b"abcdexgh", b"abcdefghijklmnopqrst"]
)
@pytest.mark.parametrize("most", [1, 3, 1 << 26])
def test_pieces_are_the_file_however_it_changes(
    after: bytes, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES_AT_MOST", most)
    place, path = Place.of(tmp_path / "store"), tmp_path / "file"
    of: list[Piece] = []
    for number, content in enumerate((b"abcd", b"abcde", b"abcdefgh", after)):
        path.write_bytes(content)
        of = pieces.sent(place, path, "file", of, num_bytes=len(content), writing=f"1.{number}")
        assert pieces.content_of(place, of) == content
    again = pieces.sent(place, path, "file", of, num_bytes=len(after), writing="2.1")
    assert again == of, "nothing has changed"


def test_what_grows_while_it_is_sent_is_sent_up_to_where_it_was(tmp_path: Path) -> None:
    place, path = Place.of(tmp_path / "store"), tmp_path / "file"
    path.write_bytes(b"abcdef")
    of = pieces.sent(place, path, "file", [], num_bytes=4, writing="1.1")
    assert pieces.content_of(place, of) == b"abcd"


@pytest.mark.parametrize("damage", [b"", b"abcx", b"abcde"])
def test_a_damaged_piece_is_not_taken_for_the_file(damage: bytes, tmp_path: Path) -> None:
    place, path = Place.of(tmp_path / "store"), tmp_path / "file"
    path.write_bytes(b"abcd")
    of = pieces.sent(place, path, "file", [], num_bytes=4, writing="1.1")
    (place / of[0].key).write(damage)
    with pytest.raises((RunDirectoryError, OSError), match=r"is damaged|is larger than 4 bytes"):
        pieces.content_of(place, of)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("metrics.jsonl", "checkpoints/latest"),
        ("metrics.jsonl", "files/metrics.jsonl/../../latest"),
        ("../x", "files/../x/1"),
        ("metrics.jsonl", "files/metrics.jsonl"),
    ],
)
def test_a_note_names_nothing_but_pieces(name: str, key: str, tmp_path: Path) -> None:
    assert pieces.fault_of({name: [Piece(key=key, num_bytes=1)]}) is not None
    place = Place.of(tmp_path / "store")
    note = f'{{"by": "x", "count": 1, "files": {{"{name}": [{{"key": "{key}", "num_bytes": 1}}]}}}}'
    (place / "mirror.1.json").write(note.encode())
    with pytest.raises(RunDirectoryError, match=r"mirror.1.json is damaged: files: .* cannot lie"):
        Mirror(place, directory(tmp_path / "run")).bring()
