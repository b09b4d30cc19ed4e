"""What becomes of media as strangers bring them: a corpus is built of them, and a run reads it.

`python -m tests.train.media_faults` (or `make faults-media`) writes out/faults-media.json, a list
of `{case, outcome, expected, named}`.
"""

import contextlib
import io
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from unittest import mock

from model import torchvision_free

torchvision_free.install()

from tests import pictures  # noqa: E402  # after install()
from tests.corpora import WORDS, write_tokenizer  # noqa: E402
from tests.tiny_media import READING  # noqa: E402
from tests.train.media_files import FILES, MediaFile  # noqa: E402
from tests.train.runs import TINY_RUN, run, start  # noqa: E402
from tools.arguments import Parser, output_file  # noqa: E402
from tools.command import command_line  # noqa: E402
from tools.corpus import media  # noqa: E402
from tools.corpus.__main__ import main as corpus_command  # noqa: E402
from train.build import build_plan  # noqa: E402
from train.config import RunConfig  # noqa: E402
from train.config_files import load  # noqa: E402
from train.data.document import MEDIA  # noqa: E402
from train.errors import ConfigError, DataError  # noqa: E402

READ: Final = "trains as the plain file that it equals, to the bit"
REFUSED: Final = "no corpus is built, and the record is named"
ENDS: Final = "ends a run and is named, and the run goes on without it"
TOLD: Final = "is told before anything starts"
STEPS: Final = 2


@dataclass(frozen=True, kw_only=True)
class Result:
    """One row of the table.

    Attributes:
        case: what was brought.
        outcome: what came of it, in the words of `expected` if all is well.
        expected: what should.
        named: what the message called it by; None where there is nothing to tell.
    """

    case: str
    outcome: str
    expected: str
    named: str | None


def rows_with(name: str, file: bytes) -> list[dict[str, Any]]:
    """Documents of which each has the same file, and some have text alone."""
    words = 3 * WORDS.split()
    return [
        {name: file, "text": " ".join(words[number : number + 5])}
        if number % 2
        else {"text": " ".join(words[number : number + 9])}
        for number in range(24)
    ]


def built(directory: Path, name: str, content: bytes, *flags: str) -> tuple[int, str]:
    """Build a corpus with one file among others; the exit status and what was said."""
    source = directory / "source"
    source.mkdir(parents=True)
    write_tokenizer(directory / "tokenizer.json")
    (source / f"odd{SUFFIXES[name]}").write_bytes(content)
    rows: list[dict[str, Any]] = [{"text": each} for each in WORDS.split()]
    rows.insert(2, {name: f"odd{SUFFIXES[name]}", "text": "what was brought"})
    (source / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        status = corpus_command(
            [
                *("build", str(source / "rows.jsonl"), str(directory / "corpus"), "--media"),
                *("--tokenizer", str(directory / "tokenizer.json"), "--workers", "1"),
                *("--validation", "0", *flags),
            ]
        )
    return status, said.getvalue()


SUFFIXES: Final[Mapping[str, str]] = {"image": ".png", "audio": ".wav", "video": ".mp4"}


def refused(file: MediaFile, directory: Path) -> Result:
    """Built of it, and again with leave to skip one."""
    status, said = built(directory / "strict", file.kind, file.content)
    told = re.search(rf"(\S*rows\.jsonl:3): the {file.kind} {file.told}", said, re.DOTALL)
    wrong: list[str] = []
    if status != 2 or told is None:
        wrong.append(f"exit status {status}: {said[-800:]}")
    status, said = built(directory / "lenient", file.kind, file.content, "--skip-bad", "1")
    if status != 0 or "1 bad record" not in said:
        wrong.append(f"with --skip-bad 1 exit status {status}: {said[-800:]}")
    return Result(
        case=file.case,
        outcome="; ".join(wrong) or REFUSED,
        expected=REFUSED,
        named=None if told is None else Path(told[1]).name,
    )


def read(file: MediaFile, directory: Path) -> Result:
    """A run on it, and one on the plain file that it equals."""
    assert file.plain is not None, "what is read equals something"
    losses: list[list[float]] = []
    for name, content in (("odd", file.content), ("plain", file.plain)):
        # In one shard: how many there are decides the order, too.
        flags = ("--shard-mebibytes", "1")
        corpus = pictures.build(directory / name, rows_with(file.kind, content), flags=flags)
        metrics = run(corpus, directory / f"run-{name}", *READING[file.kind], f"steps={STEPS}")
        losses.append([record.loss for record in metrics.train])
    outcome = READ if losses[0] == losses[1] else f"losses {losses}"
    return Result(case=file.case, outcome=outcome, expected=READ, named=None)


def ends(file: MediaFile, directory: Path) -> Result:
    """Among the documents of a corpus, as no build lets it: two ranks come upon it."""
    rows = rows_with(file.kind, file.good)
    rows[7][file.kind] = file.content
    module = {"image": media.picture, "audio": media.sound, "video": media.clip}[file.kind]
    size = module.measured(file.good)
    with mock.patch.object(module, "measured", return_value=size):
        corpus = pictures.build(directory / "corpus", rows)
    options = (*READING[file.kind], f"steps={STEPS}", "batch.micro_sequences=1")
    ended = start(corpus, directory / "run", *options, ranks=2).wait()
    told = re.search(
        rf"{file.kind} 1 of document \d+ of \S*/train \((\S+:8)\) {file.told}.*"
        r"data\.unscored_ids",
        ended.output,
    )
    if ended.code != 2 or told is None:
        outcome = f"exit status {ended.code}: {ended.output[-1500:]}"
    else:
        left_out = f"data.unscored_ids=[{told[1]}]"
        after = start(corpus, directory / "run", *options, left_out, ranks=2).wait()
        outcome = ENDS if after.code == 0 else f"without it: {after.output[-1500:]}"
    named = None if told is None else told[1]
    return Result(case=f"{file.case}, in a run", outcome=outcome, expected=ENDS, named=named)


def configured(*overrides: str) -> RunConfig:
    """The tiny run."""
    return load(RunConfig, [str(TINY_RUN), "run_directory=x", "data.corpus=x", *overrides])


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """A run and a corpus that do not go together.

    Attributes:
        case: what is wrong.
        file: that documents have; None for text alone.
        options: of the run.
        told: pattern of the message; its group is the name.
    """

    case: str
    file: MediaFile | None
    options: Sequence[str]
    told: str


def misfits() -> Iterator[Misfit]:
    """Of every modality."""
    for kind, options in READING.items():
        good = next(file for file in FILES if file.kind == kind)
        yield Misfit(
            case=f"{kind}: no encoder reads it",
            file=good,
            options=("data.pack=fit",),
            told=rf"(\S+/corpus/train) has \d+ spans of {kind}, and the model has no encoder",
        )
        yield Misfit(
            case=f"{kind}: an encoder without data",
            file=None,
            options=options,
            told=rf"(model\.encoders\.{kind}): .*/corpus has nothing that it reads",
        )
        yield Misfit(
            case=f"{kind}: larger than its capacity",
            file=good,
            options=(*options, f"data.span_capacity.{kind}={{tokens: 2, spans: 1}}"),
            told=rf"(data\.span_capacity\.{kind}\.tokens): 2 slots are fewer than one {kind} may",
        )


def misfit(case: Misfit, directory: Path) -> Result:
    """The run as far as its plan."""
    content = None if case.file is None else case.file.good
    kind = "image" if case.file is None else case.file.kind
    rows = rows_with(kind, content or b"")
    corpus = pictures.build(
        directory / "corpus", rows if content else [{"text": row["text"]} for row in rows]
    )
    said = "nothing was said"
    try:
        build_plan(configured(*case.options, f"data.corpus={corpus}"))
    except (ConfigError, DataError) as error:
        said = str(error)
    told = re.search(case.told, said)
    return Result(
        case=case.case,
        outcome=TOLD if told else said,
        expected=TOLD,
        named=None if told is None else told[1].replace(str(directory), ""),
    )


def missing(kind: str, directory: Path) -> Result:
    """A record names a file that is not there."""
    (directory / "source").mkdir()
    (directory / "source/rows.jsonl").write_text(json.dumps({kind: "gone", "text": "a b"}) + "\n")
    write_tokenizer(directory / "tokenizer.json")
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        status = corpus_command(
            [
                *("build", str(directory / "source"), str(directory / "corpus"), "--media"),
                *("--tokenizer", str(directory / "tokenizer.json"), "--workers", "1"),
            ]
        )
    told = re.search(r"(rows\.jsonl:1): .*gone", said.getvalue())
    outcome = REFUSED if status == 2 and told else f"exit status {status}: {said.getvalue()}"
    named = None if told is None else told[1]
    return Result(case=f"{kind}: missing", outcome=outcome, expected=REFUSED, named=named)


Case = Callable[[Path], Result]


def cases() -> dict[str, Case]:
    """All of the table, by name."""
    found: dict[str, Case] = {}
    for file in FILES:
        if file.plain is None:
            found[file.case] = lambda directory, file=file: refused(file, directory)
            if file.content and not file.is_read:  # nothing empty gets into a corpus
                found[f"{file.case}, in a run"] = lambda directory, file=file: ends(file, directory)
        else:
            found[file.case] = lambda directory, file=file: read(file, directory)
    for case in misfits():
        found[case.case] = lambda directory, case=case: misfit(case, directory)
    for kind in MEDIA.values():
        found[f"{kind}: missing"] = lambda directory, kind=kind: missing(kind, directory)
    return found


def play(case: Case) -> Result:
    """One case, in a directory of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="media-faults-") as directory,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        return case(Path(directory))


@command_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Play the cases, print what came of each, and write the table."""
    parser = Parser(prog="python -m tests.train.media_faults", description=__doc__)
    parser.add_argument("--only", nargs="*", default=None, metavar="CASE")
    parser.add_argument("--out", type=output_file, default="out/faults-media.json")
    options = parser.parse_args(arguments)
    known = cases()
    asked = known if options.only is None else options.only
    if unknown := [name for name in asked if name not in known]:
        parser.error(f"--only {unknown[0]}: no such case; there are {'; '.join(known)}")
    results: list[Result] = []
    for name in asked:
        result = play(known[name])
        results.append(result)
        mark = "ok" if result.outcome == result.expected else "WRONG"
        named = f" ({result.named})" if result.named else ""
        sys.stdout.write(f"{mark:6}{result.case}: {result.outcome}{named}\n")
        sys.stdout.flush()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps([asdict(each) for each in results], indent=2) + "\n")
    return int(any(each.outcome != each.expected for each in results))


if __name__ == "__main__":
    sys.exit(main())
