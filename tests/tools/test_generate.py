"""Prompts of the command line that name files: what is said of them, and what cannot be read."""

import io
import os
import re
from pathlib import Path

import pytest

from tests.pictures import png
from tests.seeing import QUESTIONS, learned, shown
from tools import generate


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learned(tmp_path_factory.mktemp("learned"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with files to show, in which one is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b").mkdir()
    for name, path in {
        "red": "red.png", "blue": "a b/it's \"blue\" [1].png", "low": "low.wav", "high": "high",
    }.items():  # fmt: skip
        (tmp_path / path).write_bytes(shown(name))
    return tmp_path


SEEN, HEARD = (f"\n{question}" for question in QUESTIONS.values())


def said(run: Path, capsys: pytest.CaptureFixture[str], *prompts: str, options: str = "") -> str:
    given = [word for prompt in prompts for word in ("--prompt", prompt)]
    assert generate.main([str(run), *given, "--max-new-tokens", "12", *options.split()]) == 0
    return capsys.readouterr().out


def test_it_says_what_files_show(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One prompt, several, by search, of names with signs and spaces, and of places elsewhere."""
    monkeypatch.setenv("PLACE", str(here))
    prompts = {
        f"[[image:red.png]]{SEEN}": "red",
        f'[[image: a b/it\'s "blue" [1].png ]]{SEEN}': "blue",
        f"[[audio:$PLACE/low.wav]]{HEARD}": "low",
        f"[[audio:{here}/high]]{HEARD}": "high",
        f"[[image:red.png]]{SEEN} it is red\n\n[[audio:high]]{HEARD}": "high",
    }
    for prompt, answer in prompts.items():
        assert said(run, capsys, prompt).strip() == f"{prompt} it is {answer}"
    wanted = "".join(f"{prompt} it is {answer}\n" for prompt, answer in prompts.items())
    for options in ("", "--beams 2"):
        told = said(run, capsys, *prompts, options=options)
        assert re.sub(r"\n+", "\n", told) == re.sub(r"\n+", "\n", wanted)


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
        ("[[video:a.mp4]]", "the prompt's [[video:a.mp4]]: the model has no encoder of video, its "
         "encoders read text, image, audio: leave it out"),
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
