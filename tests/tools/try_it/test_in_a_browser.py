"""What a person does on the page: shows files, asks, asks again, and reads how much each took.

With `--update-golden` the picture in `docs/` is made anew.
"""

import json
import os
import re
import socket
from pathlib import Path
from shutil import copyfile

import pytest

from tests.browser import Tab, browser
from tests.corpora import write_corpus
from tests.seeing import QUESTIONS, learned, shown
from tests.train import runs
from tools import generate
from tools.try_it import __main__ as try_it
from train.asked import item_vectors
from train.checkpoint.directory import resolve
from train.data.document import KINDS
from train.exit_status import ExitStatus
from train.items import Bounds, item_of
from train.loading import load_config
from train.storage.place import Place

DOCS = Path(__file__).parents[3] / "docs"
BOX = "#question textarea"
SAID = "[...document.querySelectorAll('#conversation [data-testid=bot]')].map(e => e.innerText)"


def require_page() -> None:
    """Skip a test where Gradio is not installed; in CI it has to be."""
    if try_it.PYTHON.exists():
        return
    reason = "needs Gradio: make .venv/try/installed"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


async def ask(tab: Tab, text: str, *files: Path) -> list[str]:
    """Show files, ask, and wait for the answer; what the model has said so far."""
    before = len(await tab.evaluate(SAID))
    if files:
        await tab.show_files("#question input[type=file]", files)
        seen = "document.querySelectorAll('#question .thumbnail-item').length"
        await tab.until(f"{seen} === {len(files)}")
    await tab.write(BOX, text)
    await tab.press("Enter", 13)
    await tab.until(f"{SAID}.length > {before} && document.querySelector('{BOX}').value === ''")
    return [each.strip() for each in await tab.evaluate(SAID)]


def by_generate(run: Path, prompt: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command line says behind a prompt."""
    capsys.readouterr()
    assert generate.main([str(run), "--prompt", prompt, "--stop", "\n\n"]) == 0
    return capsys.readouterr().out.removeprefix(prompt).strip()


def slots(run: Path, modality: str, file: Path) -> int:
    kind = KINDS[modality]
    item = item_of(kind, file.read_bytes(), name="it", bounds=Bounds())
    return item_vectors(load_config(resolve(Place.of(run))).model)[kind](item.size)


@pytest.mark.long
def test_a_picture_a_sound_and_a_clip_are_asked_about(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require_page()
    run, port = learned(tmp_path), free_port()
    monkeypatch.chdir(tmp_path)
    red, high, blue, rising = (
        tmp_path / name for name in ("red.png", "high.wav", "a blue 'one'.png", "rising.mp4")
    )
    for file, name in ((red, "red"), (high, "high"), (blue, "blue"), (rising, "rising")):
        file.write_bytes(shown(name))
    (tmp_path / "cut.png").write_bytes(shown("red")[:60])
    seen, heard, watched = QUESTIONS.values()

    async def converse(tab: Tab) -> tuple[list[str], str, list[str]]:
        await tab.open(f"http://127.0.0.1:{port}/", ready=f"!!document.querySelector('{BOX}')")
        await tab.evaluate(
            "window.states = new Set(); new MutationObserver(() => window.states.add("
            f"JSON.stringify({SAID}))).observe(document.body, "
            "{subtree: true, childList: true, characterData: true})"
        )
        await ask(tab, seen, red)
        await ask(tab, heard, high)
        said = await ask(tab, watched, blue, rising)
        states = await tab.evaluate("[...window.states]")
        await tab.photograph(tmp_path / "try.png")
        text = await tab.text()
        offers = "[...document.querySelectorAll('button')].filter(e => e.offsetParent)"
        labels = await tab.evaluate(f"{offers}.map(e => e.ariaLabel || e.title || e.innerText)")
        assert not [label for label in labels if "share" in label.lower()], labels
        # What cannot be read is told, and what was said stays.
        await tab.show_files("#question input[type=file]", [tmp_path / "cut.png"])
        await tab.until("document.querySelectorAll('#question .thumbnail-item').length === 1")
        await tab.press("Enter", 13)
        await tab.until("document.body.innerText.includes('Refused:')")
        assert "messages.6.content.0 cannot be read" in await tab.text()
        assert [each.strip() for each in await tab.evaluate(SAID)] == said
        assert {re.sub(r"^(https?://[^/]*).*", r"\1", each) for each in tab.asked} <= {
            f"http://127.0.0.1:{port}",
            *(each for each in tab.asked if each.startswith(("data:", "blob:"))),
        }
        return said, text, states

    with try_it.page(str(run), port), browser(width=1400, height=1000) as page:
        said, text, states = page.driven(converse)
    prompt = ""
    asked = [
        f"[[image:red.png]]\n{seen}",
        f"[[audio:high.wav]]\n{heard}",
        f"[[image:a blue 'one'.png]]\n[[video:rising.mp4]]\n{watched}",
    ]
    for question, answer in zip(asked, said, strict=True):
        prompt += question
        assert by_generate(run, prompt, capsys) == answer
        prompt += f" {answer}\n\n"
    assert said[:2] == ["it is red", "it is high"]
    firsts = {answers[0].strip() for answers in map(json.loads, states) if answers}
    assert len(firsts) > 1, "the answer comes piece by piece"
    assert all("it is red".startswith(first) for first in firsts)
    taken = re.findall(r"(\d)\s+(\S.*\S)\s+(image|audio|video)\s+(\d+)", text)
    assert [(place, name, kind, int(count)) for place, name, kind, count in taken] == [
        ("1", red.name, "image", slots(run, "image", red)),
        ("2", high.name, "audio", slots(run, "audio", high)),
        ("3", blue.name, "image", slots(run, "image", blue)),
        ("3", rising.name, "video", slots(run, "video", rising)),
    ]
    assert (tmp_path / "try.png").stat().st_size > 20_000
    if request.config.getoption("--update-golden", default=False):
        copyfile(tmp_path / "try.png", DOCS / "try.png")


@pytest.mark.long
def test_a_model_of_text_is_shown_no_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_page()
    runs.run(write_corpus(tmp_path / "corpus"), tmp_path / "run", "steps=2")
    port = free_port()

    async def converse(tab: Tab) -> list[str]:
        await tab.open(f"http://127.0.0.1:{port}/", ready=f"!!document.querySelector('{BOX}')")
        assert await tab.evaluate("document.querySelectorAll('input[type=file]').length") == 0
        assert "It reads text." in await tab.text()
        return await ask(tab, "the kernel")

    with try_it.page(str(tmp_path / "run"), port), browser() as page:
        (said,) = page.driven(converse)
    assert said == by_generate(tmp_path / "run", "the kernel", capsys)


def test_what_is_missing_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert try_it.main([]) == ExitStatus.MISTAKE
    told = "no run is named: make pretrain trains one, then make try RUN=runs/first_light"
    assert told in capsys.readouterr().err
    monkeypatch.setattr(try_it, "PYTHON", tmp_path / "python")
    assert try_it.main(["runs/none"]) == ExitStatus.MISTAKE
    assert "the page is not installed: make .venv/try/installed" in capsys.readouterr().err
    monkeypatch.setattr(try_it, "PYTHON", Path(__file__))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert try_it.main(["runs/none", "--port", str(port)]) == ExitStatus.MISTAKE
    assert f"port {port} is in use: choose another with --port" in capsys.readouterr().err


def test_nothing_is_sent_elsewhere() -> None:
    variables = {
        "GRADIO_SHARE": "True", "GRADIO_SERVER_NAME": "0.0.0.0", "HF_TOKEN": "z", "PATH": "p",
        "https_proxy": "http://proxy", "ALL_PROXY": "http://proxy",
    }  # fmt: skip
    found = try_it.kept_here(variables, directory="d")
    assert (found["PATH"], found["GRADIO_TEMP_DIR"]) == ("p", "d/shown")
    assert found["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert {*variables} & {*found} == {"PATH"}
