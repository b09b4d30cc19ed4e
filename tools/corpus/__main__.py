"""`python -m tools.corpus build [SOURCE…] OUT`; `verify`, `inspect`, `stats` and `cost` CORPUS.

`python -m tools.corpus instruct OUT --corpus CORPUS` builds a small task for finetuning.
"""

from train.preemption import quiet_until_asked

if __name__ == "__main__":
    quiet_until_asked()  # what is imported next takes seconds

import argparse
import dataclasses
import os
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, get_args

from rich.console import Console

from tools.arguments import Parser, local_path, output_file, real, utf8, whole
from tools.command import command_line
from tools.corpus import cost, left_out, show, stats, verify
from tools.corpus.build import build_share
from tools.corpus.documentation import (
    PACKAGES,
    VALIDATION_SHARE,
    Documentation,
    is_documentation,
)
from tools.corpus.entries import Fields
from tools.corpus.finished import Corpus
from tools.corpus.instruct import Task
from tools.corpus.request import DEFAULT_VALIDATION, Dedup, Method, Request
from tools.corpus.slurm import SlurmArray
from tools.corpus.tokenizer import DEFAULT_VOCABULARY, TOKENIZER_NAME
from tools.corpus.told import built, left_out_of
from tools.corpus.words import counted
from tools.packages.kept import package_cache
from train.errors import DataError
from train.storage.place import Place

_SOURCES = """\
Without a SOURCE, the corpus is English documentation: the Debian packages linux-doc-6.1 and
python3.11-doc, reduced to prose. prose:DIRECTORY reduces .rst, .txt and .md files likewise.
Any other source is a file, a directory, a pattern or an s3:// URL, perhaps as name=path. Known are
.txt and .md (a document each); .jsonl, .jsonl.zst, .jsonl.gz, .csv and .parquet (a document a row:
`text`; or `image`, `audio`, `video` with `text` or `caption`; or `segments`, a list of
{"text": ..., "span": ..., "scored": ..., "ends_paragraph": ...} and {"image": path}); pictures,
sound and video with a .txt of the same name beside them.
A build that is called again goes on where it was, or says that the corpus is there, while its
arguments and the files of its sources are the same. Whether files changed is told by name, size and
content (above 1 MiB by samples of the content and the time of the change; in a store by its ETag).
Files that rows name by path are not looked at for this.
"""


@command_line
def main(arguments: Sequence[str] | None = None) -> int | None:
    """Run the command line.

    Returns:
        Exit status: 0; 1 where a corpus is faulty; 2 where the user has something to mend;
        130 where the user interrupted it, and what is finished of a build stays.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(arguments)
    options.called = tuple(arguments[1:])
    return options.action(options, Console(stderr=True))


def _build(options: argparse.Namespace, console: Console) -> None:
    array, workers = _array(options, console), options.workers
    if workers is None:
        workers = 1 if options.tasks else _workers(options)
    if array is not None and options.task is None:
        array.require(workers)
    prose = tuple(filter(is_documentation, options.sources))
    sources = tuple(source for source in options.sources if not is_documentation(source))
    for source in prose:
        if source in PACKAGES and os.path.exists(source):
            told = f"{source} is the Debian package; write ./{source} for what lies here"
            console.print(told, markup=False, highlight=False, soft_wrap=True)
    made = None
    if prose or not sources:
        made = Documentation(
            sources=prose or tuple(PACKAGES),
            cache=options.cache or package_cache(),
            limit_megabytes=options.limit_megabytes,
        )
    elif options.limit_megabytes is not None:
        raise DataError("--limit-megabytes is for documentation; leave it out, or name less")
    share, shard_bytes = (DEFAULT_VALIDATION, 64 << 20) if sources else (VALIDATION_SHARE, 4 << 20)
    request = Request(
        sources=sources,
        made=made,
        licences=tuple(options.licence),
        tokenizer=options.tokenizer,
        vocabulary=options.vocabulary,
        fields=Fields(text=options.text_field, id=options.id_field, only=_only(options.only)),
        validation=share if options.validation is None else options.validation,
        shard_bytes=shard_bytes if options.shard_mebibytes is None else options.shard_mebibytes,
        part_bytes=options.part_mebibytes,
        has_media=options.media,
        skip_bad=options.skip_bad,
        workers=workers,
        array=array,
        dedup=Dedup(
            method=options.dedup,
            threshold=options.dedup_threshold,
            permutations=options.dedup_permutations,
        ),
    )
    if options.task is None:
        built(options.out, request, console)
    else:
        build_share(options.out, request, task=options.task, console=console)


def _only(given: Sequence[str]) -> dict[str, set[str]]:
    """Values by field.

    Raises:
        DataError: one is no `FIELD=VALUE`.
    """
    only: dict[str, set[str]] = {}
    for pair in given:
        name, is_pair, value = pair.partition("=")
        if not is_pair or not name or not value:
            raise DataError(f"--only {pair} is no FIELD=VALUE, such as meta.pile_set_name=FreeLaw.")
        only.setdefault(name, set()).add(value)
    return only


def _array(options: argparse.Namespace, console: Console) -> SlurmArray | None:
    """The array that the parts are shared by; None if none is asked for."""
    if options.tasks is None:
        if options.sbatch or options.task is not None:
            raise DataError(
                "--sbatch says how jobs are submitted: give --tasks N too, or leave it out"
            )
        return None
    try:
        flags = [word for text in options.sbatch for word in shlex.split(text)]
    except ValueError as error:
        raise DataError(f"--sbatch: {error}") from error
    return SlurmArray(
        tasks=options.tasks,
        arguments=options.called,
        flags=tuple(flags),
        report=partial(console.print, markup=False, highlight=False, soft_wrap=True),
    )


def _workers(options: argparse.Namespace) -> int:
    """As many as were asked for; default: one for each core."""
    return options.workers or len(os.sched_getaffinity(0))


def _instruct(options: argparse.Namespace, console: Console) -> None:
    corpus = Corpus.at(options.corpus)
    task = Task(
        corpus=corpus,
        num_train=options.samples,
        num_validation=options.validation_samples,
        passage_tokens=options.passage_tokens,
        cache=options.cache or package_cache(),
    )
    request = Request(
        made=task,
        tokenizer=corpus.place / TOKENIZER_NAME,
        validation=VALIDATION_SHARE,
        workers=_workers(options),
    )
    built(options.out, request, console)


def _verify(options: argparse.Namespace, console: Console) -> int:
    faults = verify.verify(options.corpus, workers=_workers(options), console=console)
    for fault in faults:
        console.print(fault, style="red", markup=False, highlight=False, soft_wrap=True)
    told = counted(len(faults), "fault") if faults else "sound"
    lines = [f"{options.corpus}: {told}", *left_out_of(options.corpus)]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if faults else 0


def _inspect(options: argparse.Namespace, console: Console) -> None:
    corpus = Corpus.at(options.corpus)
    split = options.split or next(iter(corpus.splits))
    for line in left_out.told(corpus.manifest):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    printer = show.Printer(corpus, split, console=Console(highlight=False))
    for number in show.chosen_numbers(printer, options):
        printer.print(number)


def _stats(options: argparse.Namespace, console: Console) -> None:
    stats.write_stats(options.corpus, options.out)
    sys.stdout.write(f"{options.out}\n")


def _cost(options: argparse.Namespace, console: Console) -> None:
    names = [field.name for field in dataclasses.fields(cost.Training)]
    training = cost.Training(**{name: getattr(options, name) for name in names})
    found = cost.cost(options.corpus, training)
    width = max(len(name) for name, _ in found)
    sys.stdout.write("".join(f"{name:<{width}}  {value}\n" for name, value in found))


def mebibytes(told: str) -> int:
    """The bytes of a number of mebibytes."""
    return int(real(least=2**-20, most=2**40)(told) * 2**20)


_ARGUMENTS: Final[dict[str, dict[str, Any]]] = {
    "sources": {"nargs": "*", "metavar": "SOURCE", "help": "see below"},
    "out": {"metavar": "OUT", "help": "directory, or s3://bucket/path"},
    "corpus": {"metavar": "CORPUS", "help": "directory, or s3://bucket/path"},
    "--batch-sequences": {"type": whole(least=1), "default": 256, "metavar": "N"},
    "--cache": {"type": local_path, "metavar": "DIRECTORY", "help": "keeps downloaded packages"},
    "--corpus": {"required": True, "help": "whose tokenizer and documents to use"},
    "--dedup": {
        "choices": get_args(Method),
        "help": "leave out documents that are like an earlier one: equal but for case and space, "
        "or nearly equal",
    },
    "--dedup-permutations": {
        "type": whole(least=16, most=1024),
        "default": Dedup.permutations,
        "metavar": "N",
        "help": "of minhash (default %(default)s)",
    },
    "--dedup-threshold": {
        "type": real(above=0, most=1),
        "default": Dedup.threshold,
        "metavar": "SHARE",
        "help": "of five-word sequences in common, for minhash (default %(default)s)",
    },
    "--epochs": {"type": real(least=0), "default": 1.0, "metavar": "N", "help": "default 1"},
    "--hosts": {"type": whole(), "default": 1, "metavar": "N", "help": "that download"},
    "--id": {"metavar": "ID", "help": "of a document; reads all before it"},
    "--id-field": {"type": utf8, "metavar": "NAME", "help": "default: file and row"},
    "--licence": {"type": utf8, "action": "append", "default": [], "metavar": "NAME=SPDX"},
    "--limit-megabytes": {"type": real(above=0), "metavar": "N", "help": "of documentation"},
    "--media": {"action": "store_true", "help": "store payloads whatever the first rows show"},
    "--number": {"type": whole(), "metavar": "N", "help": "from 0 (default 0)"},
    "--only": {
        "type": utf8,
        "action": "append",
        "default": [],
        "metavar": "FIELD=VALUE",
        "help": "rows in which a field, such as meta.name, has this value or another --only's",
    },
    "--out": {"type": output_file, "default": "stats.html", "help": "default stats.html"},
    "--part-mebibytes": {
        "type": mebibytes, "metavar": "N", "help": "input that a process handles at once",
    },
    "--passage-tokens": {"type": whole(), "default": 64, "help": "longest passage (default 64)"},
    "--price-per-gb-egress": {"type": real(least=0), "metavar": "PRICE"},
    "--price-per-gb-month": {"type": real(least=0), "metavar": "PRICE"},
    "--random": {"type": whole(least=1), "metavar": "K", "help": "as many, drawn at random"},
    "--samples": {"type": whole(), "default": 4000, "help": "for training (default 4000)"},
    "--seed": {"type": whole(), "default": 0, "help": "of --random (default 0)"},
    "--sequence-tokens": {"type": whole(least=1), "default": 2048, "metavar": "S"},
    "--shard-mebibytes": {
        "type": mebibytes, "metavar": "N", "help": "default 64; 4 for documentation alone",
    },
    "--skip-bad": {
        "type": whole(), "default": 0, "metavar": "N", "help": "leave out up to N bad documents",
    },
    "--split": {"metavar": "NAME", "help": "default: the first, train"},
    "--text-field": {"type": utf8, "default": "text", "metavar": "NAME", "help": "default text"},
    "--tokenizer": {"type": Place.parse, "metavar": "FILE", "help": "a tokenizer.json"},
    "--tokenizer-of": {
        "type": lambda corpus: Place.parse(corpus) / TOKENIZER_NAME,
        "dest": "tokenizer",
        "metavar": "CORPUS",
        "help": "take a corpus's tokenizer",
    },
    "--tokens": {"type": real(least=0), "metavar": "N", "help": "budget, such as 30e9"},
    "--tokens-per-second": {"type": real(least=0), "metavar": "N", "help": "of all GPUs"},
    "--sbatch": {
        "action": "append",
        "default": [],
        "metavar": "FLAGS",
        "help": 'of the jobs of --tasks, such as --sbatch="--partition=cpu --mem=8G"',
    },
    "--task": {"type": whole(), "help": argparse.SUPPRESS},
    "--tasks": {
        "type": whole(least=1),
        "metavar": "N",
        "help": "build by a Slurm array of N jobs, each with --workers processes (default 1); "
        "called again, it goes on",
    },
    "--validation": {
        "type": real(),
        "metavar": "SHARE",
        "help": f"of documents (default {DEFAULT_VALIDATION}; documentation is always split by "
        f"{VALIDATION_SHARE})",
    },
    "--validation-samples": {"type": whole(), "default": 300, "help": "default 300"},
    "--vocabulary": {
        "type": whole(),
        "metavar": "N",
        "help": f"train a tokenizer of N entries (default {DEFAULT_VOCABULARY})",
    },
    "--workers": {
        "type": whole(least=1),
        "metavar": "N",
        "help": "processes (default: one for each core)",
    },
}  # fmt: skip

_COMMANDS: Final = {
    "build": (_build, "a corpus from files", (
        "sources out --tokenizer|--tokenizer-of --vocabulary --licence --text-field --id-field "
        "--only --validation --limit-megabytes --dedup --dedup-threshold --dedup-permutations "
        "--skip-bad --media --shard-mebibytes --part-mebibytes --cache --workers --tasks --sbatch "
        "--task"
    )),
    "verify": (_verify, "check every byte of a corpus", "corpus --workers"),
    "inspect": (_inspect, "print documents as people read them", (
        "corpus --split --number|--id|--random --seed"
    )),
    "stats": (_stats, "write a page of what a corpus holds", "corpus --out"),
    "cost": (_cost, "what training on a corpus takes", (
        "corpus --tokens|--epochs --sequence-tokens --batch-sequences --tokens-per-second --hosts "
        "--price-per-gb-month --price-per-gb-egress"
    )),
    "instruct": (_instruct, "a small instruction task for finetuning", (
        "out --corpus --samples --validation-samples --passage-tokens --cache --workers"
    )),
}  # fmt: skip
"""What each does, and its arguments; of some only one may be given."""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m tools.corpus", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (action, about, arguments) in _COMMANDS.items():
        command = commands.add_parser(name, help=about)
        command.set_defaults(action=action)
        for one_of in arguments.split():
            group = command.add_mutually_exclusive_group() if "|" in one_of else command
            for argument in one_of.split("|"):
                group.add_argument(argument, **_ARGUMENTS[argument])
        if name == "build":
            command.epilog = _SOURCES
    return parser


if __name__ == "__main__":
    sys.exit(main())
