"""What is left out as a duplicate, and that the first in the global order stays."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from tests.tools.corpus.making import build, documents, passages, picture, write_lines
from tools.corpus import digests, duplicates
from tools.corpus.entries import Entry, MediaPiece
from tools.corpus.part import Job
from tools.corpus.request import SHINGLE_WORDS, Dedup, Request
from train.data.document import Kind
from train.data.segments import TextSegment

LONG = ("one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
        "sixteen seventeen eighteen nineteen twenty")  # fmt: skip


def test_equal_texts_stay_once(tmp_path: Path, tokenizer: Path) -> None:
    texts = passages(40)
    first = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    again = [f"  {text.upper()}\n\n\n" for text in texts[:25]]
    second = write_lines(
        tmp_path / "b.jsonl", [{"text": text} for text in [*again, "never seen", "never  seen"]]
    )

    out = build(
        first, second, "--dedup=exact", "--part-mebibytes=0.002", out=tmp_path / "out",
        tokenizer=tokenizer,
    )  # fmt: skip

    assert set(documents(out)) == {
        *(f"a/a.jsonl:{number + 1}" for number in range(40)),
        "b/b.jsonl:26",
    }
    manifest = json.loads((out / "manifest.json").read_text())
    assert [source["duplicates_removed"] for source in manifest["sources"]] == [0, 26]
    assert manifest["dedup"] == {"method": "exact", "duplicates_removed": 26}


def test_near_texts_stay_once_and_pictures_are_told_apart(tmp_path: Path, tokenizer: Path) -> None:
    near = LONG.replace("twenty", "twenty-one")
    far = " ".join(random.Random(0).sample(LONG.split(), 20))
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    rows = [
        *({"text": text} for text in passages(30)),
        {"text": LONG},
        {"text": far},
        {"text": near},
        {"image": "0.png", "text": LONG},
        {"image": "1.png", "text": LONG},
        {"image": "0.png", "text": LONG.upper()},
    ]
    source = write_lines(tmp_path / "a.jsonl", rows)

    out = build(source, "--dedup=minhash", out=tmp_path / "out", tokenizer=tokenizer)

    left_out = {f"a/a.jsonl:{number}" for number in range(1, 37)} - set(documents(out))
    assert left_out == {"a/a.jsonl:33", "a/a.jsonl:36"}
    strict = build(
        source, "--dedup=minhash", "--dedup-threshold=0.99", out=tmp_path / "strict",
        tokenizer=tokenizer,
    )  # fmt: skip
    assert "a/a.jsonl:33" in documents(strict)


def test_scripts_without_spaces_have_words_too() -> None:
    text = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"
    assert len(list(duplicates._shingles(text))) > 20
    assert list(duplicates._shingles("a b")) == [b"a b"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_signatures_estimate_the_share_in_common(share: float) -> None:
    words = [f"w{number}" for number in range(4000)]
    cut = round(2000 * share)
    one, two = words[:2000], [*words[:cut], *words[2000 : 4000 - cut]]
    common = max(0, cut - SHINGLE_WORDS + 1)
    real = common / (2 * (2000 - SHINGLE_WORDS + 1) - common)
    job = Job(
        workshop=None,  # pyright: ignore[reportArgumentType]  # signatures need none
        plan=None,  # pyright: ignore[reportArgumentType]  # likewise
        request=Request(dedup=Dedup(method="minhash", permutations=512)),
    )
    worker = duplicates.Fingerprinter(job)
    signatures = [worker._signature(entry(" ".join(each))) for each in (one, two)]

    assert (signatures[0] == signatures[1]).mean() == pytest.approx(real, abs=0.08)
    assert not worker._signature(entry("a", picture())).any()


def test_what_makes_no_difference_makes_none() -> None:
    base = duplicates.digest_of(entry("Café  au lait"))
    assert duplicates.digest_of(entry("cafe\u0301 AU\n\nlait ")) == base
    assert duplicates.digest_of(entry("cafe au lait")) != base
    assert duplicates.digest_of(entry("Café  au lait", picture())) != base
    assert duplicates.digest_of(entry("a", picture(1))) != duplicates.digest_of(
        entry("a", picture(2))
    )


def test_which_digests_repeat_and_where_they_stood_first() -> None:
    names = [b"%16d" % number for number in np.random.default_rng(0).integers(0, 99, 500)]
    repeated, originals = digests.repeats(digests.gathered(names))
    expected = [number for number, name in enumerate(names) if name in names[:number]]
    assert repeated.tolist() == expected
    assert originals.tolist() == [names.index(names[number]) for number in expected]
    assert [digests.located(n, [2, 0, 3]) for n in range(5)] == [
        (0, 0), (0, 1), (2, 0), (2, 1), (2, 2),
    ]  # fmt: skip


def entry(text: str, payload: bytes | None = None) -> Entry:
    pieces = () if payload is None else (MediaPiece(kind=Kind.IMAGE, data=payload),)
    return Entry(id="x", pieces=(*pieces, TextSegment(text=text)))
