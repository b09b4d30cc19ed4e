"""Directories of runs, and what mirrors hold of them."""

import json
from pathlib import Path

from train.run_directory import RunDirectory
from train.storage.place import Place


def directory(path: Path, **files: str) -> RunDirectory:
    """A run's, with some of its files."""
    path.mkdir(parents=True, exist_ok=True)
    found = RunDirectory(path)
    for name, text in files.items():
        place: Path = getattr(found, name)
        place = place / "00001-00000.bin" if name == "ledger" else place
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return found


def told(found: RunDirectory) -> dict[str, bytes]:
    """All that a mirror keeps of a directory."""
    files = [path for kept in found.mirrored for path in (kept, *kept.rglob("*"))]
    return {
        str(path.relative_to(found.path)): path.read_bytes() for path in files if path.is_file()
    }


def held(place: Place, name: str) -> bytes | None:
    """A file, as the mirror's newest note says."""
    notes = [int(each.split(".")[1]) for each in place.names() if each.startswith("mirror.")]
    files = json.loads((place / f"mirror.{max(notes)}.json").read())["files"]
    if name not in files:
        return None
    return b"".join((place / piece["key"]).read() for piece in files[name])
