"""What a place is, by what a user writes."""

import errno
import os
import socket
import stat
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.lab_fixtures import place_at
from train.errors import StorageError
from train.storage.bucket import StorePlace
from train.storage.config import StorageConfig
from train.storage.place import Place, ReplacedError
from train.storage.stored_file import FaultyFileError, StoredFile


def test_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place.parse("s3://bucket/a/b/")
    assert isinstance(place, StorePlace)
    assert (place.bucket, place.path, place.is_remote) == ("bucket", "a/b", True)
    assert str(place / "c") == "s3://bucket/a/b/c"
    assert (place / "c").path == "a/b/c"
    assert (place / "c").parent == place
    assert place.name == "b"
    assert str(place.parent.parent) == "s3://bucket"
    assert (Place.parse("s3://bucket") / "x").path == "x"
    monkeypatch.setenv("WHERE", "bucket/run")
    assert Place.parse("s3://$WHERE/x").path == "run/x"


def test_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    place = Place.parse("~/runs")
    assert Place.parse("$RUNS/a").path == Place.parse("${RUNS}/a").path == str(tmp_path / "runs/a")
    assert (place.path, str(place), place.is_remote) == (str(tmp_path / "runs"), "~/runs", False)
    assert str(place / "a") == "~/runs/a"
    assert Path(place / "a") == tmp_path / "runs/a"
    assert Path(Place.parse("/") / "a") == Path("/a")
    assert Place.parse("a").parent.path == "."
    assert str(Place.parse("//")) == Place.parse("//").path == "/"
    assert Path(Place.parse("//") / "a") == Path("/a")
    assert str(Place.parse("a/b/").parent) == Place.parse("a/b/").parent.path == "a"
    assert Place.parse("s3:/bucket").path == "s3:/bucket", "no URL"


def test_what_exists_is_taken_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("$price", "~", "a*[b]?"):
        (tmp_path / name).mkdir()
        assert Place.parse(name).path == name
        assert Place.parse(name).exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gs://bucket/x", "gs://bucket/x is not a place .* give a path or an s3://bucket/path URL"),
        ("file:///x", "is not a place"),
        ("s3:///x", "is not a place"),
        ("$NO_SUCH_VARIABLE/x", "the variable .NO_SUCH_VARIABLE is not set; write the path out"),
        ("~no-such-user/x", "there is no such home"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        Place.parse(text)


def test_files_of_this_host(tmp_path: Path) -> None:
    place = Place.of(tmp_path / "a/b")
    assert not place.exists()
    assert place.names() == []
    with pytest.raises(FileNotFoundError):
        (place / "x").read()
    (place / "x").write(b"one")
    (place / "x").write(b"two")
    with (place / "c/y").create() as sink:
        sink.write(b"yy")
    assert place.names() == ["c", "x"]
    assert {found.name: found.num_bytes for found in place.files()} == {"x": 3, "c/y": 2}
    source = (place / "x").open()
    target = bytearray(2)
    source.read_into(memoryview(target), offset=1)
    assert target == b"wo"
    source.close()
    place.remove()
    assert Place.of(tmp_path / "a").names() == []


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/b").write_bytes(b"b")
    (tmp_path / "in/a").symlink_to(tmp_path / "elsewhere/b")
    (tmp_path / "in/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "in")
    names = [found.name for found in Place.of(tmp_path / "in").files()]
    assert names == ["a", "more/b"]


def test_how_a_store_is_reached_goes_with_the_place() -> None:
    storage = StorageConfig(timeout_seconds=7)
    assert (Place.parse("s3://b/x", storage) / "y").parent.storage is storage


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.timeout(20)  # a pipe that is opened to be read waits for a writer
@pytest.mark.parametrize(
    ("make", "is_called"),
    [
        (os.mkfifo, "a named pipe"),
        (os.mkdir, "a directory"),
        (_socket, "a socket"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
    ],
)
def test_only_files_are_opened(
    make: Callable[[Path], object], is_called: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    make(Path("file"))
    told = rf"file is {is_called} and no file: move it away, and put the file in its place"
    with pytest.raises(StorageError, match=told):
        Place.parse("file").read()
    with pytest.raises(StorageError, match=told):
        Place.parse("file").open()
    with pytest.raises(FaultyFileError, match=told):
        StoredFile("file", 3, ("sha256", "0")).open(Path("file"), check=True)


def test_nothing_is_read_of_a_file_that_is_too_large(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.truncate(tmp_path / "file", 1 << 40)
    with pytest.raises(StorageError, match="file is larger than 1,000 bytes, which no such file"):
        Place.of(tmp_path / "file").read(limit_bytes=1000)


@pytest.mark.parametrize("device", ["null", "full"])
def test_a_device_is_never_replaced_by_a_file(device: str, tmp_path: Path) -> None:
    """Else who may write there takes the system's own away: `--out /dev/null`."""
    numbers = {"null": os.makedev(1, 3), "full": os.makedev(1, 7)}
    path = tmp_path / device
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, numbers[device])
        path.open("ab").close()
    except PermissionError:
        pytest.skip("only root makes devices, and not in every container")
    for write in (lambda: Place.of(path).write(b"x"), lambda: _create(Place.of(path))):
        with pytest.raises(OSError, match="No space") if device == "full" else nullcontext():
            write()
        assert stat.S_ISCHR(path.stat().st_mode)
        assert os.listdir(tmp_path) == [device]


def _create(place: Place) -> None:
    with place.create() as file:
        file.write(b"x")


@pytest.mark.parametrize("where", ["here", "in a store"])
def test_what_is_written_once_is_whole_and_stays(
    where: str, request: pytest.FixtureRequest
) -> None:
    place = place_at(where, "once", request) / "index.json"
    for _ in range(2):
        place.write_once(b"mine")  # the second time as after an answer that was lost
    with pytest.raises(StorageError, match=r"index.json was written by another process meanwhile"):
        place.write_once(b"another's")
    assert place.read() == b"mine"
    assert place.parent.names() == ["index.json"]


def test_what_is_written_once_needs_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)
    place = Place.of(tmp_path / "once")
    place.write_once(b"mine")
    assert (place.read(), Place.of(tmp_path).names()) == (b"mine", ["once"])


def test_what_has_changed_since_is_not_written_over(request: pytest.FixtureRequest) -> None:
    place = place_at("in a store", "over", request) / "latest"
    place.write_over(b"1", before=None)
    place.write_over(b"1", before=None)  # as after an answer that was lost
    seen = place.find()
    place.write_over(b"2", before=seen)
    for before in (seen, None):
        with pytest.raises(ReplacedError, match=r"latest was written by another process"):
            place.write_over(b"3", before=before)
    assert place.read() == b"2"
    place.remove()
    place.write_over(b"4", before=seen)
    assert place.read() == b"4"
