"""How files and overrides become a configuration, and how faults are told."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel, TypeAdapter

from model.config import Tokens
from tests.soon import soon
from tests.train.runs import TINY_RUN
from train.claim import stored_config
from train.config import RunConfig
from train.config_files import Files, load
from train.errors import ConfigError
from train.explain import _members
from train.run_directory import RunDirectory


def faults(*arguments: str) -> list[str]:
    """What is wrong with the tiny run when it is given these arguments too; told soon."""
    with soon(), pytest.raises(ConfigError) as error:
        load(RunConfig, [str(TINY_RUN), *arguments])
    lines = str(error.value).splitlines()
    assert max(map(len, lines)) < 800
    return lines


OVERRIDES = [
    (f"samples.prompts=[{342 * 'a'}", "samples.prompts: cannot read '[aaa"),
    ("=", "=: is no key: write key=value"),
    ("=5", "=: is no key: write key=value"),
    (".steps=5", ".steps: is no key"),
    ("optim..lr=1", "optim..lr: is no key"),
    ("optim.=1", "optim.: is no key"),
    ("a." * 5000 + "a=1", "a.a.a."),
    ("optim\n=1", "optim\\n: is no key"),
    ("optim.lr\0=1", "optim.lr\\x00: is no key"),
    ("name=a\0b", "name: cannot read 'a\\x00b' as a YAML value: line 1, column 2: has the charact"),
    ("name=\udce9", "name: cannot read '\\udce9' as a YAML value: is no text in UTF-8"),
    ("\udce9=1", "\\udce9: is no key"),
    ("run_directory=runs/a #1", "line 1, column 8: a comment begins here: put the whole value"),
    ("name=@here", "name: cannot read '@here' as a YAML value: line 1, column 1: is not YAML"),
    ('optim={"lr\\n": 1}', "optim.'lr\\n': no such key"),
    ("optim.LR=1", "optim.LR: no such key; did you mean optim.lr?"),
    ("optim.eps=0", "optim.eps: input should be greater than or equal to 1e-20 (got 0)"),
    ("steps=", "steps: input should be a valid integer (got None)"),
    ("steps.x=1", "steps: input should be a valid integer"),
    ("optim=1", "optim: must hold keys and values (got 1)"),
    ("zero.stage=yes", "zero.stage: input should be 0, 1, 2 or 3 (got 'yes')"),
    ("steps=1:30", "steps: input should be a valid integer (got '1:30')"),
    ("steps=1e٣", "steps: input should be a valid integer (got '1e٣')"),
    ("steps=1_000", "steps: input should be a valid integer without _ (got '1_000')"),
    ("steps=1e6", "steps: input should be a valid integer, written as 1000000 (got 1000000.0)"),
    ("steps='5'", "steps: input should be a valid integer (got '5')"),
    ("optim.lr=1_0", "optim.lr: input should be a valid number without _ (got '1_0')"),
    ("optim={lr: 1, weight_decay: 9}", "optim.weight_decay: times lr it is 9, and a step would"),
    ("spans.text={max_tokens: 2}", "spans.text.min_tokens: must not exceed max_tokens"),
    ("steps=true", "steps: input should be a valid integer (got True)"),
    (f"name=[{250_000 * 'a'}]", "name: input should be a valid string"),
    (f"steps={250_000 * 'a'}", "steps: input should be a valid integer (got 'aaa"),
    (f"{250_000 * 'a'}=1", "aaa"),
    (f"spans.{250_000 * 'a'}.kind=random", "spans.aaa"),
    (f"spans.text.kind={250_000 * 'a'}", "spans.text.kind: there is no kind aaa"),
    ("spans.text.kind=radnom", "spans.text.kind: there is no kind radnom; did you mean random?"),
    ("spans.text.kind=5", "spans.text.kind: there is no kind 5; say random or rules or fixed or"),
    ("spans.text.kind=[random]", "spans.text.kind: there is no kind ['random']; did you mean"),
    (
        "model.encoders.text.encoder.kind=txt",
        "model.encoders.text.encoder.kind: there is no kind txt; did you mean text?",
    ),
    (
        "model.encoders.text.connector={num_layers: 3}",
        "model.encoders.text.connector.kind: is missing: say linear or mlp",
    ),
    (
        "model.encoders.text.connector={knid: mlp}",
        "model.encoders.text.connector.knid: no such key; did you mean "
        "model.encoders.text.connector.kind?",
    ),
    ("spans.text.random=1", "spans.text.random: no such key"),
    ("spans.text.random.ratio=1", "spans.text.random: no such key"),
    ("model.encoders.text.encoder.text=1", "model.encoders.text.encoder.text: no such key"),
    ("validation.sequence_parallel=true", "did you mean layout.sequence_parallel?"),
    ("optim.sequence_tokens=5", "did you mean data.sequence_tokens?"),
    ("validation.steps=5", "did you mean validation.every_steps?"),
    ("checkpoint.every_step=5", "did you mean checkpoint.every_steps?"),
    ("spans.text.min_token=5", "did you mean spans.text.min_tokens?"),
]


@pytest.mark.parametrize(("override", "told"), OVERRIDES, ids=lambda text: repr(text[:30]))
def test_override(override: str, told: str) -> None:
    assert any(told in line for line in faults(override)), faults(override)


def test_many_faults_are_not_all_told() -> None:
    many = "{" + ", ".join(f"key_{i}: 1" for i in range(9_000)) + "}"
    lines = faults(f"spans.text={many}", f"optim={many}")
    assert len(lines) == 21
    assert lines[-1].startswith("and 17,")


def test_what_could_not_be_read_back_once_it_is_stored(tmp_path: Path) -> None:
    sources = ", ".join(f"s{i}: {{corpus: x}}" for i in range(3_900))
    (tmp_path / "a.yaml").write_text(f"data: {{corpus: null, sources: {{{sources}}}}}")
    with pytest.raises(ConfigError, match=r"as runs store it, it .*holds more than 20,000 values"):
        load(RunConfig, [str(TINY_RUN), str(tmp_path / "a.yaml")])


def test_a_context_of_a_million_tokens_and_one() -> None:
    assert TypeAdapter(Tokens).validate_python(1_048_577)


def written(directory: Path, **files: str) -> str:
    for name, content in files.items():
        (directory / f"{name}.yaml").write_text(content)
    return str(directory / "a.yaml")


def test_includes_that_double_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    for name, below in pairwise(letters):
        written(tmp_path, **{name: f"include: [{below}.yaml, ./{below}.yaml]\n{name}: 1"})
    written(tmp_path, z="z: 1")
    with soon():
        assert sorted(Files().read(tmp_path / "a.yaml")) == list(letters)


def test_a_diamond(tmp_path: Path) -> None:
    a = written(
        tmp_path,
        a="include: [b.yaml, c.yaml]",
        b="include: [d.yaml]\nx: b",
        c="include: [d.yaml]\ny: c",
        d="x: d\ny: d\nz: d",
    )
    # What c includes comes after b, as if it had been written there.
    assert Files().read(Path(a)) == {"x": "d", "y": "c", "z": "d"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("include: [a.yaml]", "includes itself"),
        ("include: [b.yaml]", "includes itself"),
        ("include: [../{}/a.yaml]", "includes itself"),
        ("include: [none.yaml]", "there is no such file"),
        ('include: ["x\\0y"]', "cannot be the name of a file"),
        (f"include: [{300 * 'x'}]", "cannot be read: File name too long"),
        ("include: [$NOT_SET/x.yaml]", "the variable $NOT_SET is not set"),
        ("include: [{}]", "include must be a list of files"),
        ("include: [/]", "cannot be read: Is a directory"),
    ],
)
def test_includes_that_are_refused(tmp_path: Path, content: str, told: str) -> None:
    content = content.replace("{}/", f"{tmp_path.name}/")
    a = written(tmp_path, a=content, b="include: [a.yaml]")
    assert told in faults(a)[0]


def test_includes_under_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path, base="seed: 7")
    a = written(tmp_path, a="include: [~/base.yaml]")
    assert load(RunConfig, [str(TINY_RUN), a]).seed == 7
    assert load(RunConfig, [str(TINY_RUN), "~/base.yaml"]).seed == 7


@pytest.mark.parametrize(
    "content", [b"\x7fELF\x02\xff\xfe", b"\0\0\0", b"a: [", b"- 1", b"name: \x80"]
)
def test_a_damaged_stored_configuration_is_named(tmp_path: Path, content: bytes) -> None:
    directory = RunDirectory(tmp_path)
    directory.config.write_bytes(content)
    with pytest.raises(ConfigError, match=str(directory.config)) as error:
        stored_config(directory)
    assert len(str(error.value).splitlines()) == 1


def numbers(annotation: Any, above: str = "") -> Iterator[tuple[str, type[int] | type[float]]]:
    """Every number of a configuration that stands alone, as its key, with its type."""
    members = list(_members(annotation))
    for member in members:
        if isinstance(member, type) and issubclass(member, BaseModel):
            for name, field in member.model_fields.items():
                yield from numbers(field.annotation, f"{above}.{name}".lstrip("."))
        elif get_origin(member) is dict:
            named = {"data.sources": "a"}.get(above, "text")
            yield from numbers(get_args(member)[1], f"{above}.{named}")
        elif member in (int, float) and str not in members:  # else any text will do
            yield above, member


IMAGE = [
    "model.encoders.text.encoder={kind: image, width: 32, num_layers: 1, heads: 4, "
    "feed_forward: 32, max_patches: 4}"
]
AUDIO = [
    "model.encoders.text.encoder={kind: audio, width: 32, num_layers: 1, heads: 4, "
    "feed_forward: 32, front: {kind: log_mel}}"
]
WAVEFORM = [AUDIO[0].replace("log_mel", "waveform")]
VIDEO = [IMAGE[0].replace("image", "video")]
KINDS = {
    **dict.fromkeys(
        ("encoder.max_seconds", "encoder.padded_seconds", "encoder.rate", "encoder.table_rows"),
        AUDIO,
    ),
    "front.mels": AUDIO,
    "front.norm_epsilon": WAVEFORM,
    "front.position": WAVEFORM,
    "encoder.frames": VIDEO,
    "encoder.tube_frames": VIDEO,
    "encoder.layer_scale": IMAGE,
    "encoder.max_patches": IMAGE,
    "encoder.patch_pixels": IMAGE,
    "spans.text.augment": ["spans.text={kind: image, augment: {}}"],
    "spans.text.which": ["spans.text={kind: rules, which: first}"],
    "data.sources": ["data.corpus=null", "data.sources={a: {corpus: x}}"],
    "data.span_capacity": ["data.span_capacity={text: {tokens: 4, spans: 1}}"],
    "lora": ["init_from=x", "lora={}"],
    "evaluation": ["evaluation={tasks: [part_of_speech]}"],
    "rope_scaling": ["model.decoder.rope_scaling={kind: llama3, factor: 8, original_tokens: 64}"],
    "checkpoint.local": ["checkpoint.local={directory: x, every_steps: 1}"],
    "objective.": ["objective={kind: replaced_tokens}"],
    **{
        f"objective.{key}": ["objective={kind: contrast}"]
        for key in (
            *("starts", "mask_rows", "negatives", "groups", "entries", "code_width"),
            *("softness", "diversity"),
        )
    },
    "objective.units": ["objective={kind: masked_units, clusters: x}"],
    "connector": ["model.encoders.text.connector={kind: mlp}"],
    **{
        f"connector.{key}": ["model.encoders.text.connector={kind: resampler}"]
        for key in ("feed_forward", "heads", "num_layers", "queries")
    },
    "encoder.text.": [f"{IMAGE[0][:-1]}, text: {{}}}}"],
    "spans.text.prefix": ["spans.text={kind: image, prefix: {}}"],
}


@pytest.mark.parametrize(("key", "kind"), sorted(set(numbers(RunConfig)), key=str))
def test_senseless_sizes_are_refused(key: str, kind: type) -> None:
    makes_room = [argument for part in KINDS if part in key for argument in KINDS[part]]
    halves = ("0.5",) if kind is int else ()
    for value in (-(10**30), -1, 10**30, "1e300", ".nan", ".inf", "-.inf", "true", "''", *halves):
        told = faults(*makes_room, f"{key}={value}")
        assert told[0].startswith(f"{key}: input should be"), told
