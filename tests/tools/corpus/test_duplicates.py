"""What is left out as a duplicate, and that the first in the global order stays."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools.corpus.making import build, documents, passages, picture, refusal, write_lines
from tools.corpus import build as building
from tools.corpus import digests, duplicates, near
from tools.corpus.entries import Entry
from tools.corpus.request import SHINGLE_WORDS, Dedup
from train.data.document import Kind
from train.data.segments import MediaSegment, TextSegment

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
    assert len(list(near._shingles(text))) > 20
    assert list(near._shingles("a b")) == [b"a b"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_signatures_estimate_the_share_in_common(share: float, tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(4000)]
    cut = round(2000 * share)
    one, two = words[:2000], [*words[:cut], *words[2000 : 4000 - cut]]
    common = max(0, cut - SHINGLE_WORDS + 1)
    real = common / (2 * (2000 - SHINGLE_WORDS + 1) - common)
    signing = near.Signing(tmp_path, Dedup(method="minhash", permutations=512))
    signing.sign([" ".join(one), " ".join(two)], part=0)
    signatures = signing.signatures

    assert (signatures[0] == signatures[1]).mean() == pytest.approx(real, abs=0.08)


def test_a_long_text_is_signed_in_pieces_as_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join(f"w{number}" for number in range(999))
    dedup = Dedup(method="minhash")

    def signed(name: str) -> list[bytes]:
        signing = near.Signing(tmp_path / name, dedup)
        signing.sign([text, "of few words"], part=3)
        files = sorted((tmp_path / name).rglob("*.sig"))
        assert len(files) == near.config_of(dedup).num_buckets
        return [signing.signatures.tobytes(), *(file.read_bytes() for file in files)]

    whole = signed("whole")
    monkeypatch.setattr(near, "_SHINGLES_AT_ONCE", 7)
    assert signed("pieces") == whole


def test_hits_and_misses_against_every_pair(tmp_path: Path, tokenizer: Path) -> None:
    """Shares in common from none to all, over several parts; and what a brute force would drop."""
    chance = random.Random(3)
    texts: list[str] = []
    for family in range(60):
        words = [f"{family}w{number}" for number in range(120)]
        for _ in range(4):
            texts.append(" ".join(words))
            for _ in range(chance.randint(0, 4)):  # each changes five shingles of 116
                words[chance.randrange(len(words))] = f"x{chance.random()}"
    chance.shuffle(texts)
    source = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts])

    out = build(
        source, "--dedup=minhash", "--part-mebibytes=0.02", out=tmp_path / "out",
        tokenizer=tokenizer,
    )  # fmt: skip

    dropped = {int(name.rpartition(":")[2]) - 1 for name in documents(out)}
    dropped = {*range(len(texts))} - dropped
    sets = [{*zip(*(text.split()[at:] for at in range(5)), strict=False)} for text in texts]
    threshold, margin, wrong, stay = 0.8, 0.1, 0, []
    for number, own in enumerate(sets):
        shares = [len(own & sets[k]) / len(own | sets[k]) for k in range(number)]
        nearest = max((shares[k] for k in range(number) if k not in dropped), default=0.0)
        # An estimate of 126 hashes errs by 0.035 there: none errs by three times as much.
        assert not (number in dropped and nearest < threshold - margin), (number, nearest)
        assert not (number not in dropped and nearest > threshold + margin), (number, nearest)
        if max((shares[k] for k in stay), default=0.0) < threshold:
            stay.append(number)
        wrong += (number in stay) == (number in dropped)
    assert len(texts) - len(stay) > 60
    assert wrong < len(texts) // 10


def test_the_end_of_a_chain_stays() -> None:
    """As clusters alone would have it, the first of a cluster stays, and nothing else."""
    ends = np.array([[0, 1, 0, 2], [0, 2, 1, 0], [1, 5, 1, 6]], "<u4")
    clusters = near.Clusters([ends[:2].tobytes(), b"", ends[2:].tobytes(), ends[:1].tobytes()])
    assert clusters.documents(0).tolist() == [1, 2]
    assert clusters.documents(1).tolist() == [0, 5, 6]
    signatures = np.zeros((5, 100), np.uint32)
    signatures[1, :15] = 1  # near to the first, of which the third is not
    signatures[2, :30] = 1
    signatures[4, :15] = 1

    assert clusters.dropped(signatures, 0.8).tolist() == [[0, 2], [1, 6]]
    assert clusters.dropped(signatures, 0.9).tolist() == []
    assert near.Clusters([b""]).dropped(np.zeros((0, 9), np.uint32), 0.8).tolist() == []


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
    pieces = () if payload is None else (MediaSegment(kind=Kind.IMAGE, data=payload),)
    return Entry(id="x", pieces=(*pieces, TextSegment(text=text)))


@pytest.mark.parametrize(
    ("method", "left", "lost"),
    [
        ("minhash", "signatures", "signatures/bucket_005/00001.minhash.sig"),
        ("minhash", "pairs", "pairs/00005.dups"),
        ("minhash", "digests", "digests/00001.npz"),
        ("exact", "digests", "digests/00001.npz"),
        ("exact", "duplicates", "duplicates/00001.keep.npy"),
    ],
)
def test_no_duplicate_stays_because_a_record_is_lost(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], method: str, left: str, lost: str,
) -> None:  # fmt: skip
    """As on a network's file system, which shows a node less than another has written."""
    texts = passages(30)
    source = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in [*texts, *texts]])
    flags = (f"--dedup={method}", "--part-mebibytes=0.002")
    stages = {"signatures": "Pairing", "pairs": "decide", "digests": "decide"}
    stage = stages.get(left)
    real = getattr(duplicates, stage) if stage else building.PartBuilder

    def after_a_loss(*arguments: Any) -> Any:
        (tmp_path / "out/.building" / lost).unlink(missing_ok=True)
        return real(*arguments)

    with monkeypatch.context() as patch:
        if stage:
            patch.setattr(duplicates, stage, after_a_loss)
        else:
            patch.setattr(building, "PartBuilder", after_a_loss)
        said = refusal(capsys, source, *flags, out=tmp_path / "out", tokenizer=tokenizer)

    assert f"/.building/{lost} is gone, or this host does not see it: run the same" in said
