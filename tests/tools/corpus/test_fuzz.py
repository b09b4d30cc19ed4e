"""Random inputs: a sentence with the remedy, or a corpus that accounts for all that was given.

`SEED=… pytest tests/tools/corpus/test_fuzz.py` draws one of them again.
"""

import json
import os
from pathlib import Path

import pytest

from tests.tools.corpus.fuzzing import Chance, Drawn
from tests.tools.corpus.making import QUIET, build_status, documents
from tests.tools.corpus.test_tokenizer import KINDS
from tools.corpus import verify
from tools.corpus.left_out import shown

FEW, MANY = 50, 250
"""Inputs of each kind that `make test` and that `make test-all` draws."""
AT_ONCE = 25


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> list[Path]:
    directory = tmp_path_factory.mktemp("tokenizers")
    found = [tokenizer] * len(KINDS)
    for number, make in enumerate(KINDS.values()):
        found.append(directory / f"{number}.json")
        make().save(str(found[-1]))
    return found


def unaccounted(drawn: Drawn, out: Path, flags: list[str], *, source: str) -> list[str]:
    """What the corpus says nothing of, held against what was drawn."""
    manifest = json.loads((out / "manifest.json").read_text())
    [described] = manifest["sources"]
    path = out / "left_out.json"
    left_out = {row["name"] for row in json.loads(path.read_text())} if path.exists() else set()
    told = [*documents(out), *manifest["skipped"]]
    found: list[str] = []
    if described["records"] != (
        described["documents"] + described["duplicates_removed"] + described["skipped"]
    ):
        found.append(f"records: {described}")
    hidden = "--dedup=exact" in flags or "--dedup=minhash" in flags or "--id-field=id" in flags
    for name in map(shown, drawn.entries):
        parts = name.split("/")
        above = {"/".join(parts[:at]) + "/" for at in range(1, len(parts))}
        names = {name, *above, f"{name}/"}
        if source == "prose":  # what is left out is told as documents are
            names = {f"{drawn.root.name}/{each}" for each in names}
        if names & left_out or name in drawn.payloads or hidden:
            continue
        caption = os.path.splitext(name)[0]
        stems = (
            name,
            name.removesuffix(".gz"),
            *(caption + end for end in (".png", ".wav", ".mp4")),
        )
        own = [text for text in told if any(f"/{stem}" in text for stem in stems)]
        if not own:
            found.append(f"{name} is nowhere")
        rows = drawn.rows.get(name)
        if any("cannot be read from here on" in text for text in own):
            rows = None  # nobody can say how many there are
        if rows is not None and len([text for text in own if f"/{name}:" in text]) != rows:
            found.append(f"{name}: {rows} rows, told of {len(own)}")
    return found


@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(begin, marks=[pytest.mark.long] if begin >= FEW else [])
        for begin in range(0, MANY, AT_ONCE)
    ],
)
@pytest.mark.parametrize("kind", ["files", "prose"])
def test_random_inputs(
    kind: str, begin: int, tmp_path: Path, tokenizers: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    only = os.environ.get("SEED")
    seeds = range(begin, begin + AT_ONCE) if only is None else [int(only)]
    built = 0
    for seed in seeds:
        chance = Chance(f"{kind} {seed}")
        drawn = chance.tree(tmp_path / f"{seed}/in", is_prose=kind == "prose")
        flags, tokenizer = chance.flags(), chance.choice(tokenizers)
        source = f"prose:{drawn.root}" if kind == "prose" else chance.source(drawn)
        out = tmp_path / f"{seed}/out"
        again = f"SEED={seed}, {kind}: {source} {flags} {tokenizer}"
        try:
            status = build_status(source, *flags, out=out, tokenizer=tokenizer)
        except BaseException as error:
            raise AssertionError(f"{again}: {type(error).__name__}") from error
        told = capsys.readouterr().err
        if status == 2:
            assert told.strip(), again
            assert max(map(len, told.splitlines())) < 2000, f"{again}: {told}"
            continue
        assert status == 0, f"{again}: {told}"
        faults = verify.verify(str(out), workers=1, console=QUIET)
        assert faults == [], again
        assert unaccounted(drawn, out, flags, source=kind) == [], again
        built += 1
    assert only is not None or built >= AT_ONCE // 5, "most are refused: the draw is too odd"
