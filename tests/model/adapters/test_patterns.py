"""What patterns over names choose, and what is said of those that choose nothing."""

import itertools
import random
import re

from model.adapters.patterns import chosen, faults

NAMES = [
    *(f"decoder.blocks.{i}.{part}" for i in range(12) for part in ("attention.qkv", "up")),
    *(f"encoders.text.blocks.{i}.attention.qkv" for i in range(3)),
    "connectors.text.layers.0",
    "decoder.embedding.weight",
]


def of(*patterns: str) -> set[str]:
    return chosen(patterns, NAMES)


def test_a_pattern_is_found_between_dots() -> None:
    assert of("up") == {f"decoder.blocks.{i}.up" for i in range(12)}
    assert of("encoders.text") == of("encoders") == {n for n in NAMES if n.startswith("encoders")}
    assert of("blocks.1") == {n for n in NAMES if "blocks.1." in n}
    assert of("embedding.weight") == {"decoder.embedding.weight"}
    assert not of("bed", "u", "ecoder", "blocks.1.u")


def test_any_text_and_what_is_taken_away() -> None:
    assert of("*qkv", "!encoders") == {f"decoder.blocks.{i}.attention.qkv" for i in range(12)}
    assert of("decoder.*.qkv") == of("*qkv", "!encoders")
    assert of("!up", "*") == set(NAMES) - of("up")


def test_any_text_beside_digits() -> None:
    """How many layers there are is no part of their numbers."""
    for pattern, numbers in (
        ("decoder.blocks.*2.up", (2,)),
        ("decoder.blocks.*1.up", (1, 11)),
        ("decoder.blocks.1*.up", (1, 10, 11)),
        ("decoder.blocks.1.up", (1,)),
    ):
        assert of(pattern) == {f"decoder.blocks.{n}.up" for n in numbers}, pattern
    assert not of("decoder.blocks.01.up", "decoder.blocks.112.up", "*12")


def test_ranges_of_layers() -> None:
    for first, last in itertools.product(range(-13, 13), repeat=2):

        def within(index: int, count: int, ends: tuple[int, int] = (first, last)) -> bool:
            low, high = (end if end >= 0 else count + end for end in ends)
            return low <= index <= high

        expected = {
            name
            for name in NAMES
            if (found := re.match(r"(\w+)\..*blocks\.(\d+)\.", name))
            and within(int(found[2]), 12 if found[1] == "decoder" else 3)
        }
        assert of(f"blocks.{{{first}..{last}}}") == expected, (first, last)


def test_nearest_names() -> None:
    (told,) = faults("lora.targets", ["decoder.block.*.qvk"], NAMES, what="linear layer")
    assert told.startswith("lora.targets: no linear layer is called decoder.block.*.qvk; the near")
    assert "decoder.blocks" in told
    told = list(faults("x", ["up", "!nope", "qkv"], NAMES, what="layer"))
    assert len(told) == 1
    assert "no layer is called !nope" in told[0]
    (told,) = faults("x", ["up", "!decoder"], NAMES, what="layer")
    assert "what is left of up, !decoder is no layer" in told


def test_many_patterns_choose_what_each_does() -> None:
    stream = random.Random(0)
    pool = ["up", "qkv", "decoder", "*text*", "blocks.{0..1}", "blocks.{-1..-1}.up", "0", "layers"]
    for _ in range(30):
        some = stream.sample(pool, 3)
        assert of(*some) == set().union(*map(of, some))
