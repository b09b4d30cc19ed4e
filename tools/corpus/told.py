"""What a builder tells of a corpus that is done."""

import contextlib
import sys
import time

from rich.console import Console

from tools.corpus import build, left_out
from tools.corpus.finished import Corpus
from tools.corpus.request import Request
from tools.corpus.tokenizer import ReadBack


def built(out: str, request: Request, console: Console) -> None:
    """Build, and say what was built.

    Raises:
        DataError: as `build`.
        KeyboardInterrupt: the user interrupts it; the message says what stays.
    """
    started = time.monotonic()
    try:
        manifest = build.build(out, request, console=console)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; what is finished of a build stays") from None
    lines = [f"{out}: {time.monotonic() - started:.1f} s"]
    for split, numbers in manifest["splits"].items():
        told = ", ".join(
            f"{value:,} {name.replace('_', ' ')}"
            for name, value in numbers.items()
            if value and name != "samples"  # which are the documents
        )
        if told:
            lines.append(f"  {split}: {told}")
    for source in manifest["sources"]:
        licences = " and ".join(source["licences"]) or "licence not stated"
        lines.append(f"  from {source['name']}: {source['tokens']:,} tokens ({licences})")
    lines += left_out_of(out)
    sys.stdout.write("\n".join(lines) + "\n")


def left_out_of(corpus: str) -> list[str]:
    """What a corpus lacks of what was given for it, files, documents and characters."""
    manifest = Corpus.at(corpus).manifest
    found = left_out.told(manifest)
    if (read_back := manifest.read_back) is not None:
        with contextlib.suppress(ValueError):
            found += filter(None, (str(ReadBack.model_validate(read_back)),))
    return [f"  {line}" for line in found]
