"""Prompts of the command line that name files: what is said behind them, what cannot be read."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.pictures import png
from tests.seeing import QUESTIONS, learned, shown
from tools import generate
from tools.speaker import speaker_of
from train.asked import Asked, Prompt
from train.data.document import Kind
from train.data.segments import MediaSegment
from train.items import Bounds, item_of
from train.prompt import Items


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learned(tmp_path_factory.mktemp("learned"), steps=3)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with files to show, in which one is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b").mkdir()
    for name, path in {
        "red": "red.png", "blue": "a b/it's \"blue\" [1].png", "low": "low.wav", "high": "high",
        "rising": "rising.mp4",
    }.items():  # fmt: skip
        (tmp_path / path).write_bytes(shown(name))
    return tmp_path


SEEN, HEARD, WATCHED = (f"\n{question}" for question in QUESTIONS.values())


def said(run: Path, capsys: pytest.CaptureFixture[str], *prompts: str, options: str = "") -> str:
    given = [word for prompt in prompts for word in ("--prompt", prompt)]
    assert generate.main([str(run), *given, "--max-new-tokens", "6", *options.split()]) == 0
    return capsys.readouterr().out


def test_files_are_shown(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One prompt, several, by search, of names with signs and spaces, and of places elsewhere."""
    monkeypatch.setenv("PLACE", str(here))
    prompts = {
        f"[[image:red.png]]{SEEN}": ["red"],
        f'[[image: a b/it\'s "blue" [1].png ]]{SEEN}': ["blue"],
        f"[[audio:$PLACE/low.wav]]{HEARD}": ["low"],
        f"[[audio:{here}/high]] and [[image:red.png]]{HEARD}": ["high", "red"],
        f"[[video:rising.mp4]]{WATCHED}": ["rising"],
    }
    _, speaker = speaker_of(str(run), None, device=torch.device("cpu"))
    asked = [
        Asked(prompt=speaker.prompt(prompt, items=in_order(names)), max_new_tokens=6)
        for prompt, names in prompts.items()
    ]
    wanted = [
        f"{prompt}{answer.text}\n"
        for prompt, answer in zip(prompts, speaker.complete(asked), strict=True)
    ]
    for prompt, whole in zip(prompts, wanted, strict=True):
        assert said(run, capsys, prompt) == whole
    assert said(run, capsys, *prompts) == "".join(wanted)
    read = [each.prompt for each in asked if isinstance(each.prompt, Prompt)]
    found = speaker.search(read, max_new_tokens=6, num_beams=2)
    beams = said(run, capsys, *prompts, options="--beams 2")
    assert beams == "".join(f"{a}{b}\n" for a, b in zip(prompts, found, strict=True))


def in_order(names: Sequence[str]) -> Items:
    """Items by their place in a prompt, whatever it calls them."""
    left = iter(names)

    def item(kind: Kind, name: str) -> MediaSegment:
        return item_of(kind, shown(next(left)), name=name, bounds=Bounds())

    return item


def test_chat_shows_files_too(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["[[image:none.png]]", f"[[image:red.png]]{QUESTIONS['image']}", "", "/quit"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert generate.main([str(run), "--chat", "--max-new-tokens", "5"]) == 0
    told = capsys.readouterr().out
    assert "is no file in" in told


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("x [[image:none.png]]", "the prompt's [[image:none.png]] is no file in {here}: name one"),
        ("[[image:a b]]", "the prompt's [[image:a b]] cannot be read ("),
        ("[[image:pipe]]", "the prompt's [[image:pipe]] cannot be read ("),
        ("[[image:low.wav]]", "the prompt's [[image:low.wav]] is no image but audio: name it so"),
        ("[[audio:red.png]]", "the prompt's [[audio:red.png]] is no audio but image: name it so"),
        ("[[image:cut.png]]", "the prompt's [[image:cut.png]] cannot be read ("),
        ("[[image:empty]]", "the prompt's [[image:empty]] is empty"),
        ("[[image:http://a.b/c.png]]", "http://a.b/c.png is not a place that files can be read f"),
        ("[[image:$NONE/a]]", "the variable $NONE is not set"),
        ("[[video:low.wav]]", "the prompt's [[video:low.wav]] is no video but audio: name it so"),
        ("[[]] empty", "the prompt's span '[[]]' is empty (line 1, character 1): close"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_refused(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str], prompt: str, told: str
) -> None:
    os.mkfifo(here / "pipe")
    (here / "cut.png").write_bytes(png(40, 40)[:-60])
    (here / "empty").touch()
    assert generate.main([str(run), "--prompt", "the page", "--prompt", prompt]) == 2
    written = capsys.readouterr()
    assert told.format(here=here) in written.err
    assert not written.out, "a refused prompt is not begun"
    assert len(written.err.strip().splitlines()) == 1
