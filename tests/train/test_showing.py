"""Prompts that show pictures and sounds: answers are those of training's own forward."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from model.reading import Cache, Reading
from model.semicausal import SemiCausal
from tests.pictures import png
from tests.seeing import seeing, with_encoders
from tests.sounds import noise, saved
from tests.train.scores.test_pictures import MESH, ROOM, SEEING, asked, heard, seen
from train.asked import Asked, Prompt, pack
from train.data.collate import Collator
from train.data.document import MEDIA, Kind
from train.data.sample import Sample
from train.data.segments import MediaSegment, Segment, TextSegment
from train.data.spans.given import StoredSpansConfig
from train.data.spans.kinds import MEDIA_SPANS
from train.data.spans.text import TextReader
from train.data.tokens import SpecialTokens
from train.errors import DataError, UserError
from train.items import Bounds, item_of
from train.scores.answers import Answers
from train.scores.asking import Asking
from train.scores.request import Generation, Likelihood
from train.scores.scorer import Scorer
from train.text import Speaker

FILES: Mapping[str, MediaSegment] = {
    "wide.png": seen(16, 24),
    'my cat\'s "best" [1].png': seen(8, 8),
    "a.wav": heard(900),
    "b]].flac": heard(333),
}
PROMPTS: Mapping[str, tuple[Segment, ...]] = {
    "[[image:wide.png]]\nthe page is": (seen(16, 24), asked("the page is")),
    "a page [[image: my cat's \"best\" [1].png ]] and [[audio:a.wav]] of": (
        asked("a page"), seen(8, 8), asked(" and"), heard(900), asked(" of"),
    ),
    r"[[audio:b\]].flac]][[the driver]] is heard": (
        heard(333),
        TextSegment(text="the driver", is_span=True, is_scored=False, ends_paragraph=False),
        asked(" is heard"),
    ),
    "the kernel\n[[image:wide.png]]\n\n[[image:wide.png]]": (
        TextSegment(text="the kernel", is_scored=False), seen(16, 24), seen(16, 24),
    ),
    "nothing to see": (asked("nothing to see"),),
}  # fmt: skip


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    return seeing(tmp_path_factory.mktemp("speaker"))


def kept(kind: Kind, name: str) -> MediaSegment:
    assert FILES[name].kind == kind
    return FILES[name]


def read(speaker: Speaker) -> list[Prompt]:
    return [speaker.prompt(prompt, items=kept) for prompt in PROMPTS]


def likeliest(model: SemiCausal, asking: Asking, segments: tuple[Segment, ...], count: int):
    """What a whole forward without a cache finds likeliest behind a document, token by token.

    Training's loss of the document that goes on so is as low as its logits say.
    """
    context = asking.context(segments)
    text = TextReader(kind=StoredSpansConfig(kind="stored"), capacity=ROOM)
    readers = {
        MEDIA[kind]: each.reader(
            SEEING.encoders[MEDIA[kind]].encoder, capacity=ROOM, seed=0, special=SpecialTokens()
        )
        for kind, each in MEDIA_SPANS.items()
        if MEDIA[kind] in SEEING.encoders
    }
    found: list[int] = []
    while len(found) < count:
        tokens = [*context.tokens, *found]
        reading = Reading.of(
            [tokens], Cache(), device=torch.device("cpu"), spans=packed(asking, segments, found)
        )
        with torch.no_grad():
            logits = model(reading)[0].log_softmax(-1)
        found.append(int(logits.argmax()))
        row = Sample(
            id=0,
            tokens=np.array([*tokens, found[-1]]),
            spans=np.array(context.spans, dtype=np.int64).reshape(-1, 2),
            scored=np.array([False] * len(tokens) + [True]),
            items=context.items,
        )
        collate = Collator(
            sequence_tokens=len(tokens), readers={"text": text, **readers}, padding=3
        )
        with torch.no_grad():
            loss = model(collate([(0, row)])).terms[0]
        assert float(loss) == pytest.approx(-float(logits.max()), abs=1e-4)
        if found[-1] == asking.special.document:
            return found[:-1]
    return found


def packed(asking: Asking, segments: tuple[Segment, ...], found: list[int]):
    """The spans of a context and what was found behind it."""
    context = asking.context(segments)
    prompt = Prompt(
        tokens=[*context.tokens, *found], spans=[*context.spans], items=[*context.items]
    )
    return pack(SEEING, [prompt], device=torch.device("cpu"))


def test_an_answer_is_that_of_a_whole_forward(speaker: Speaker) -> None:
    """Each beside all others, as if it were alone; the document is what a corpus would hold."""
    model = speaker.read
    assert isinstance(model, SemiCausal)
    asking = Asking(speaker.tokenizer, SEEING)
    answers = speaker.complete([Asked(prompt=prompt, max_new_tokens=4) for prompt in read(speaker)])
    for answer, segments in zip(answers, PROMPTS.values(), strict=True):
        assert answer.prompt.tokens == [*asking.context(segments).tokens]
        assert answer.prompt.spans == [*asking.context(segments).spans]
        assert answer.row.ids == likeliest(model, asking, segments, 4)
    assert len({tuple(answer.row.ids) for answer in answers}) > 2


def test_an_answer_is_that_of_an_evaluation(speaker: Speaker) -> None:
    model = speaker.read
    assert isinstance(model, SemiCausal)
    asking = Asking(speaker.tokenizer, SEEING)
    scorer = Scorer(model, MESH, weights="w", answers=Answers(None), model=SEEING, batch=4)
    stop = (speaker.special.document,)
    found = scorer.ask(
        [
            Generation(context=asking.context(segments), max_new_tokens=8, stop_tokens=stop)
            for segments in PROMPTS.values()
        ]
    )
    answers = speaker.complete([Asked(prompt=each, max_new_tokens=8) for each in read(speaker)])
    for (scored,), answer in zip(found, answers, strict=True):
        assert not isinstance(scored, Likelihood)
        assert [*scored] == answer.row.ids


def test_another_picture_is_another_answer(speaker: Speaker) -> None:
    def answer(colour: tuple[int, int, int]) -> list[float]:
        shown = MediaSegment(kind=Kind.IMAGE, data=png(16, 24, colour=colour), size=(16, 24))
        prompt = speaker.prompt("[[image:x]] is", items=lambda kind, name: shown)
        (told,) = speaker.complete([Asked(prompt=prompt, max_new_tokens=1, num_top=5)])
        return [value for _, value in told.row.tokens[0].top]

    assert answer((200, 0, 0)) != pytest.approx(answer((0, 0, 200)), abs=1e-3)


def test_beams_see_pictures_too(speaker: Speaker) -> None:
    prompts = read(speaker)
    together = speaker.search(prompts, max_new_tokens=6, num_beams=3)
    alone = [speaker.search([each], max_new_tokens=6, num_beams=3)[0] for each in prompts]
    assert together == alone


def test_files_are_let_go_once_they_are_read(speaker: Speaker) -> None:
    """Many prompts may wait, of megabytes each."""
    for prompt in read(speaker):
        assert len(prompt.contents) == len(prompt.items)
        assert not any(item.data for item in prompt.items)
        assert speaker.prompt(prompt) is prompt or speaker.prompt(prompt) == prompt


@pytest.mark.parametrize(
    ("encoders", "prompt", "told"),
    [
        (
            ("text", "image"), "x [[audio:a.wav]]",
            "the prompt's [[audio:a.wav]]: the model has no encoder of audio, its encoders read "
            "text, image: leave it out, or name a run that has one",
        ),
        ((), "[[image:wide.png]]", "no encoder of image, its encoders read nothing: leave it out"),
        (("image",), "[[video:a.mp4]]", "no encoder of video, its encoders read image: leave it"),
        (("image",), "[[the driver]]", "the model has no text encoder: remove the [[ ]]"),
        (("image",), "[[note: a]]", r"reads from no prompt: leave it out, or write \[[note: if it"),
        (("text",), "[[note: a]]", "leave it out, or write [[text:note: if it is text"),
        (
            ("text", "audio"), "[[audio:long]]",
            "long has a sound of 0.250 seconds, and its encoder reads 0.2 at most",
        ),
        (
            ("image",), "[[image:wide.png]]" * 11,
            "the prompt has 67 tokens, 66 of them for what it shows, the model reads 64",
        ),
        (("image",), "[[image:cut]]", "cut cannot be read ("),
    ],
)  # fmt: skip
def test_what_the_model_cannot_read_is_refused(
    encoders: tuple[str, ...], prompt: str, told: str, tmp_path: Path
) -> None:
    def opened(kind: Kind, name: str) -> MediaSegment:
        if name == "cut":
            return item_of(kind, png(16, 24)[:60], name=name, bounds=Bounds())
        if name == "long":
            return item_of(kind, saved(noise(2000), 8000), name=name, bounds=Bounds())
        return FILES[name]

    speaker = seeing(tmp_path, with_encoders(*encoders))
    with pytest.raises(UserError, match=re.escape(told)):
        speaker.prompt(prompt, items=opened)


def test_items_are_named_by_no_prompt_of_a_run(speaker: Speaker) -> None:
    with pytest.raises(UserError, match=r"\[\[image: \(line 1, character 1\) names a modality"):
        speaker.prompt("[[image:wide.png]]")


SHORT = Bounds(num_bytes=10_000, pixels=300, seconds=0.1)


@pytest.mark.parametrize(
    ("kind", "data", "told"),
    [
        (Kind.IMAGE, b"", "it is empty"),
        (Kind.IMAGE, b"GIF89a", "it cannot be read ("),
        (Kind.IMAGE, saved(noise(200), 8000), "it is no image but audio: name it so"),
        (Kind.AUDIO, png(9, 9), "it is no audio but image: name it so"),
        (Kind.AUDIO, b"RIFF", "it cannot be read ("),
        (Kind.IMAGE, png(16, 19), "it has 16x19 pixels, more than 300: make it smaller"),
        (Kind.AUDIO, saved(noise(801), 8000), "it is longer than 0.1 seconds"),
        (Kind.AUDIO, saved(noise(9000), 8000), "it has 18,044 bytes, more than 10,000: make it"),
    ],
)
def test_what_is_no_item_is_refused(kind: Kind, data: bytes, told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        item_of(kind, data, name="it", bounds=SHORT)


def test_a_picture_that_is_cut_off_behind_its_header(speaker: Speaker) -> None:
    """Its size can be told; it is refused before anything is computed."""
    whole = png(40, 40)
    with pytest.raises(DataError, match="it cannot be read"):
        speaker.prompt(
            "[[image:x]]",
            items=lambda kind, name: item_of(kind, whole[:-60], name="it", bounds=Bounds()),
        )
