"""Damages to files that are read back, and what each command makes of them, in this process."""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

import numpy as np
import xxhash

from tests.train.runs import TINY_RUN
from tools import checkpoint, evaluate, generate, ledger, merge, report
from tools.command import command_line
from tools.corpus.__main__ import main as corpus
from train.build import build_collator, build_plan
from train.claim import check
from train.config import RunConfig
from train.config_files import load
from train.prepare import find_saved, refuse_other_corpus
from train.wrap_up import look_at_data

DEADLINE_SECONDS: Final = 20
STEP: Final = "run/checkpoints/step_00000006"
CHUNKS: Final = f"{STEP}/chunks-00000.safetensors"

_PART: Final = "corpus/train/part-00000.shard-00000"
SHARD, LENGTHS = f"{_PART}.mds", f"{_PART}.lengths.npy"


@command_line
def train(directory: list[str]) -> None:
    """All that a run which goes on reads, and the samples of three steps."""
    (root,) = directory
    paths = f"data.corpus={root}/corpus", f"run_directory={root}/run"
    config = load(RunConfig, [str(TINY_RUN), *paths, "data.pack=fit"])
    check(config)
    saved = find_saved(config, config.checkpoints_of(config.directory))
    assert saved is not None
    plan = build_plan(config)
    refuse_other_corpus(plan.sources, saved.state, saved.path)
    seen = hashlib.sha256()
    for step in (1, 2, 3):
        for entry in plan.step(step):
            sample = entry.source.read(entry.sequence)
            seen.update(sample.tokens.tobytes())
    entropy = look_at_data(config, plan, build_collator(config, plan.sources.special))
    print(seen.hexdigest(), entropy)  # noqa: T201  # what is compared


COMMANDS: Final[dict[str, Callable[[str], int]]] = {
    "train": lambda root: train([root]),
    "corpus verify": lambda root: corpus(["verify", f"{root}/corpus", "--workers", "1"]),
    "corpus inspect": lambda root: corpus(["inspect", f"{root}/corpus", "--number", "3"]),
    "corpus stats": lambda root: corpus(["stats", f"{root}/corpus", "--out", f"{root}/s.html"]),
    "corpus cost": lambda root: corpus(["cost", f"{root}/corpus"]),
    "checkpoint inspect": lambda root: checkpoint.main(["inspect", f"{root}/run"]),
    "checkpoint verify": lambda root: checkpoint.main(["verify", f"{root}/run"]),
    "ledger check": lambda root: ledger.main(["check", f"{root}/run"]),
    "ledger show": lambda root: ledger.main(["show", f"{root}/run", "--step", "2"]),
    "report": lambda root: report.main([f"{root}/run"]),
    "merge": lambda root: merge.main([f"{root}/lora", f"{root}/merged"]),
    "evaluate": lambda root: evaluate.main([f"{root}/run", "--out", f"{root}/e.json"]),
    "generate": lambda root: generate.main(
        [f"{root}/run", "--prompt", "the kernel", "--max-new-tokens", "3"]
    ),
}

OF_CORPUS = ("train", "corpus verify", "corpus inspect", "corpus stats", "corpus cost")
OF_CHECKPOINT = ("checkpoint inspect", "checkpoint verify", "train", "evaluate", "generate")

READERS: Final[dict[str, tuple[str, ...]]] = {
    "corpus/train/index.json": (*OF_CORPUS, "ledger check"),
    "corpus/train/lengths.json": OF_CORPUS,
    "corpus/train/manifest.json": OF_CORPUS,
    "corpus/manifest.json": OF_CORPUS,
    "corpus/train/token_counts.npy": OF_CORPUS,
    "corpus/train/tokenizer.json": ("train", "corpus verify"),
    SHARD: OF_CORPUS,
    LENGTHS: OF_CORPUS,
    "run/checkpoints/latest": (*OF_CHECKPOINT, "ledger check"),
    f"{STEP}/index.json": (*OF_CHECKPOINT, "ledger check"),
    f"{STEP}/state.json": (*OF_CHECKPOINT, "ledger check"),
    CHUNKS: ("checkpoint verify", "generate", "evaluate"),
    "run/config.yaml": ("train", "report", "ledger check"),
    "run/metrics.jsonl": ("report",),
    "run/ledger/00001-00000.bin": ("ledger check", "ledger show"),
    "run/tokenizer.json": ("generate",),
    "lora/checkpoints/step_00000004/state.json": ("merge",),
    "lora/checkpoints/step_00000004/index.json": ("merge",),
}
"""Files that are read back, and who reads them."""


SHOWN: Final = {
    *(("corpus/manifest.json", command) for command in ("corpus inspect", "corpus stats")),
    *((f"{STEP}/index.json", command) for command in ("checkpoint inspect",)),
    *(("run/metrics.jsonl", command) for command in ("report",)),
    *(("run/config.yaml", command) for command in ("report",)),
}
"""Documents that a command shows as they are, and what nothing vouches for in them."""


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _link(target: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        path.symlink_to(target if target else path.name)

    return damage


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _sparse(path: Path) -> None:
    os.truncate(path, 1 << 40)


def _written(content: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_bytes(content)

    return damage


def _flipped(place: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(place * (len(content) - 1))] ^= 0x11
        path.write_bytes(content)

    return damage


WHOLE: Final[dict[str, Callable[[Path], None]]] = {
    "is missing": Path.unlink,
    "is empty": _written(b""),
    "is cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "has a byte changed at 1/3": _flipped(1 / 3),
    "has its last byte but one changed": _flipped(0.999),
    "is not UTF-8": _written(b'{"a": "\xff\xfe"}\n'),
    "is random": _written(np.random.default_rng(0).bytes(3000)),
    "is null": _written(b"null\n"),
    "is a list": _written(b"[]\n"),
    "is an empty object": _written(b"{}\n"),
    "is a number": _written(b"1e999\n"),
    "is a word": _written(b'"word"\n'),
    "is 5,000 brackets": _written(b"[" * 5000 + b"]" * 5000 + b"\n"),
    "is 5,000 braces": _written(b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"\n"),
    "is a number of 5,000 digits": _written(b"9" * 5000 + b"\n"),
    "is a named pipe": _pipe,
    "is a directory": _directory,
    "is a link to itself": _link(""),
    "is a link to nothing": _link("nothing"),
    "is a device": _link("/dev/zero"),
    "is a terabyte": _sparse,
}

VALUES: Final[dict[str, Any]] = {
    "null": None,
    "a word": "word",
    "half": 0.5,
    "-1": -1,
    "10^30": 10**30,
    "2^53 - 2": 2**53 - 2,
    "a list": [7],
    "an object": {"a": 7},
    "true": True,
}
_GONE: Final = object()


@dataclass(frozen=True)
class Damage:
    """One damage to one file.

    Attributes:
        file: below the directory of all.
        what: was done to it, in words.
        do: does it.
        is_silent: nothing can tell it, since what vouches for the file was changed with it.
    """

    file: str
    what: str
    do: Callable[[Path], object]
    is_silent: bool = False


def damages() -> Iterator[Damage]:
    """All that are done to whole files."""
    for file in READERS:
        for what, do in WHOLE.items():
            yield Damage(file, what, lambda root, do=do, file=file: do(root / file))


def field_damages(root: Path) -> Iterator[Damage]:
    """All that are done to fields of documents; where a checksum vouches for one, it is renewed."""
    for file in READERS:
        if not file.endswith((".json", ".jsonl")) or "tokenizer" in file:
            continue
        for path in _fields(_document(root / file)):
            named = ".".join(map(str, path))
            for what, value in {"nothing": _GONE, **VALUES}.items():
                yield Damage(
                    file,
                    f"{named} is {what}",
                    lambda root, file=file, path=path, value=value: _edit(root, file, path, value),
                    is_silent=file.endswith("state.json"),
                )


def _document(file: Path) -> Any:
    """What a file holds: JSON, or a line of JSON of each kind."""
    if file.suffix == ".json":
        return json.loads(file.read_text())
    return {row["kind"]: row for row in map(json.loads, file.read_text().splitlines()[::-1])}


def _content(file: Path, document: Any) -> bytes:
    if file.suffix == ".json":
        return json.dumps(document).encode()
    return "".join(json.dumps(row) + "\n" for row in document.values()).encode()


def _fields(document: Any, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The first field of each kind: of entries of a list, and of mappings by name, the first."""
    if above and above[-1] in ("config", "recipe"):
        yield above
    elif isinstance(document, dict):
        if above:
            yield above
        alike = above and above[-1] in ("parameters", "files", "sha256")
        for key, value in list(document.items())[: 1 if alike else None]:
            yield from _fields(value, (*above, key))
    elif isinstance(document, list):
        yield above
        for number, value in list(enumerate(document))[:1]:
            yield from _fields(value, (*above, number))
    else:
        yield above


def _edit(root: Path, file: str, path: tuple[str | int, ...], value: Any) -> None:
    document = _document(root / file)
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    if value is _GONE:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    content = _content(root / file, document)
    (root / file).write_bytes(content)
    if file.endswith("state.json"):
        index = root / file.replace("state.json", "index.json")
        told = json.loads(index.read_text())
        told["files"]["state.json"] = {
            "bytes": len(content),
            "xxh3_128": xxhash.xxh3_128(content).hexdigest(),
        }
        index.write_text(json.dumps(told))


class Stage:
    """A copy of all files, which each damage finds as they were."""

    def __init__(self, whole: Path, scratch: Path):
        self.whole, self.root = whole, scratch / "all"
        self._expected: dict[str, str] = {}

    def expected(self, command: str) -> str:
        """What a command says of undamaged files."""
        if command not in self._expected:
            self._renew()
            code, said = run(command, self.root)
            assert code == 0, f"{command}: {said}"
            self._expected[command] = said
        return self._expected[command]

    def fault(self, damage: Damage, command: str) -> str | None:
        """What a command does that it must not, after a damage; None if nothing."""
        expected = self.expected(command)
        self._renew()
        damage.do(self.root)
        told = f"{damage.file} {damage.what}: {command}"
        try:
            code, said = run(command, self.root)
        except TimeoutError:
            return f"{told}: hangs"
        except BaseException as error:
            return f"{told}: {type(error).__name__}: {str(error)[:200]}"
        if code == 0:
            shown = (damage.file, command) in SHOWN
            changed = not (damage.is_silent or shown) and said != expected
            return f"{told}: goes on with other data\n{said[:300]}" if changed else None
        path = Path(damage.file)
        # Of a run or a checkpoint, that is named whole: what is wrong lies between its files.
        place = () if path.parts[0] == "corpus" else (str(self.root / path.parts[0]),)
        names = path.name, path.name.partition(".")[0], f"{path.parent.parent} cannot be", *place
        if code not in (1, 2) or not any(name in said for name in names):
            return f"{told}: exit {code}, says {said[:300]!r}"
        return f"{told}: says too much ({len(said):,})" if len(said) > 6000 else None

    def _renew(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self.whole, self.root, symlinks=True)


def run(command: str, root: Path) -> tuple[int, str]:
    """A command's exit status and words, but for what differs from time to time."""

    def late(*_: int | FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(DEADLINE_SECONDS)
    words = io.StringIO()
    try:
        with contextlib.redirect_stdout(words), contextlib.redirect_stderr(words):
            try:
                code = COMMANDS[command](str(root))
            except SystemExit as ended:
                code = int(ended.code or 0)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return code, re.sub(r"\d+\.\d s", "", words.getvalue())
