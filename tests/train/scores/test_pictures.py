"""Questions about items: tokens as a corpus has them, answers as training's loss has them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from model.layers import initialize
from model.semicausal import ModelConfig, SemiCausal
from parallel.launch import World
from parallel.mesh import Mesh
from tests.corpora import write_tokenizer
from tests.pictures import png
from tests.sounds import noise, saved
from tests.train.scores.models import LONGEST_SPAN, MODEL
from tests.train.scores.test_asking import TASK
from tools.corpus.encoding import Encoded, Encoder
from tools.corpus.entries import Entry
from tools.corpus.tokenizer import CorpusTokenizer
from train.asked import item_vectors
from train.data.collate import Collator
from train.data.document import Document, Kind
from train.data.sample import Sample
from train.data.segments import MediaSegment, TextSegment
from train.data.slots import slotted
from train.data.spans.audio import AudioSpansConfig
from train.data.spans.given import StoredSpansConfig
from train.data.spans.image import ImageSpansConfig
from train.data.spans.protocol import SpanCapacity
from train.data.spans.text import TextReader
from train.data.tokens import SpecialTokens
from train.errors import DataError
from train.scores.answers import Answers
from train.scores.asking import Asking
from train.scores.request import Context, Continuation, Likelihood, Likelihoods, key_of
from train.scores.scorer import Scorer
from train.tasks.example import Choice, Example

SEEING = ModelConfig.model_validate(
    {
        **MODEL.model_dump(),
        "encoders": {
            **MODEL.model_dump()["encoders"],
            "image": {
                "encoder": {
                    "kind": "image", "width": 16, "num_layers": 1, "heads": 2,
                    "feed_forward": 32, "patch_pixels": 8, "max_patches": 6,
                }
            },
            "audio": {
                "encoder": {
                    "kind": "audio", "width": 16, "num_layers": 1, "heads": 2,
                    "feed_forward": 32, "front": {"kind": "log_mel", "mels": 8},
                    "max_seconds": 0.2,
                }
            },
        },
    }
)  # fmt: skip
MESH = Mesh(world=World(rank=0, size=1, device=torch.device("cpu")), data_rank=0, data_size=1)
ROOM = SpanCapacity(tokens=64, spans=64, longest_tokens=LONGEST_SPAN)


def seen(height: int, width: int) -> MediaSegment:
    return MediaSegment(kind=Kind.IMAGE, data=png(height, width), size=(height, width))


def heard(count: int) -> MediaSegment:
    return MediaSegment(kind=Kind.AUDIO, data=saved(noise(count), 8000), size=(count, 8000))


def asked(text: str) -> TextSegment:
    return TextSegment(text=text, is_scored=False, ends_paragraph=False)


CONTEXTS = [
    (seen(16, 24), asked("the page is")),
    (asked("a page"), seen(8, 8), asked(" and"), seen(40, 9), asked(" of memory is")),
    (seen(16, 16),),
    (TextSegment(text="the driver", is_span=True, is_scored=False), seen(24, 16), asked("is")),
    (asked("nothing to see"),),
    (heard(1600), asked("is heard")),
    (asked("a page"), heard(333), seen(8, 8), asked(" and"), heard(900), asked(" of memory is")),
]
EXAMPLES = [
    Example(
        id=f"t/test:{number}",
        template="plain",
        context=context,
        choices=(Choice(text="the kernel"), Choice(text="page", before="a device")),
        gold=0,
        answers=("the kernel",),
        group="0",
    )
    for number, context in enumerate(CONTEXTS)
]


@pytest.fixture(scope="module")
def made() -> SemiCausal:
    torch.manual_seed(0)
    model = SemiCausal(SEEING).eval()
    initialize(model, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def asking(tmp_path: Path) -> Asking:
    write_tokenizer(tmp_path / "tokenizer.json")
    return Asking(Tokenizer.from_file(str(tmp_path / "tokenizer.json")), SEEING)


def requests(asking: Asking) -> list[Likelihoods]:
    found = [asking.request(example, TASK)[0] for example in EXAMPLES]
    return [each for each in found if isinstance(each, Likelihoods)]


def answered(made: SemiCausal, asked: list[Likelihoods], *, batch: int) -> list[list[float]]:
    answers = Answers(None)
    scorer = Scorer(made, MESH, weights="w", answers=answers, model=SEEING, batch=batch)
    return [
        [each.log_likelihood for each in some if isinstance(each, Likelihood)]
        for some in scorer.ask(asked)
    ]


def by_training(made: SemiCausal, asked: Likelihoods) -> list[float]:
    """What training's own loss says of each continuation, alone in a batch, without any cache."""
    items = {
        name: kind.reader(
            SEEING.encoders[name].encoder, capacity=ROOM, seed=0, special=SpecialTokens()
        )
        for name, kind in (
            ("image", ImageSpansConfig(kind="image")),
            ("audio", AudioSpansConfig(kind="audio")),
        )
    }
    text = TextReader(kind=StoredSpansConfig(kind="stored"), capacity=ROOM)
    found: list[float] = []
    for each in asked.continuations:
        tokens = np.array([*asked.context.tokens, *each.tokens])
        counted = np.zeros(len(tokens), dtype=np.bool_)
        counted[len(tokens) - len(each.tokens) + each.given :] = True
        sample = Sample(
            id=0,
            tokens=tokens,
            spans=np.array(asked.context.spans, dtype=np.int64).reshape(-1, 2),
            scored=counted,
            items=asked.context.items,
        )
        collate = Collator(
            sequence_tokens=len(tokens) - 1, readers={"text": text, **items}, padding=3
        )
        with torch.no_grad():
            loss = made(collate([(0, sample)]))
        found.append(-float(loss.terms[: int(counted.sum())].double().sum()))
    return found


@pytest.mark.parametrize("batch", [1, 8])
def test_answers_are_those_of_trainings_loss(made: SemiCausal, asking: Asking, batch: int) -> None:
    asked = requests(asking)
    found = answered(made, asked, batch=batch)
    for request, of_request in zip(asked, found, strict=True):
        assert of_request == pytest.approx(by_training(made, request), abs=1e-4)


def test_another_picture_is_another_answer(made: SemiCausal, asking: Asking) -> None:
    one, other = (
        asking.context((MediaSegment(kind=Kind.IMAGE, data=data, size=(16, 24)), asked("it is")))
        for data in (png(16, 24), png(16, 24, colour=(0, 0, 200)))
    )
    [request, *_] = requests(asking)
    told = [
        Likelihoods(context=context, continuations=request.continuations)
        for context in (one, other)
    ]
    found = answered(made, told, batch=8)
    assert abs(found[0][0] - found[1][0]) > 1e-3


def test_an_example_is_what_a_corpus_holds(asking: Asking, tmp_path: Path) -> None:
    tokenizer = CorpusTokenizer.from_file(tmp_path / "tokenizer.json")
    for example, request in zip(EXAMPLES, requests(asking), strict=True):
        entry = Entry(id="t", pieces=example.document())
        (stored,) = Encoder(tokenizer, has_media=True)([entry])
        assert isinstance(stored, Encoded)
        document = Document.from_columns(dict(stored.columns))
        read = slotted(document, item_vectors(SEEING), filler=asking.special.padding)
        *tokens, paragraph, end = read.tokens.tolist()
        assert (paragraph, end) == (1, 2)
        assert [0, *tokens] == [*request.context.tokens, *request.continuations[0].tokens]
        assert [*request.context.spans] == [(a + 1, b + 1) for a, b in read.spans.tolist()]
        there = [(item.data, item.size, a + 1, b + 1) for item, a, b in read.items]
        here = [(each.data, each.size, each.start, each.stop) for each in request.context.items]
        assert here == there


def test_answers_are_kept_by_picture(asking: Asking) -> None:
    first, *_ = requests(asking)

    def key(height: int, name: str = "x") -> str:
        item = MediaSegment(kind=Kind.IMAGE, data=png(height, 24), size=(16, 24))
        return key_of("w", asking.context((item,), name=name), first.continuations[0])

    assert key(16) == key(16, "another record")
    assert key(16) != key(17)
    # As they were before there were pictures: what is kept of texts is found again.
    text = Context(tokens=(0, 5, 6, 7))
    assert key_of("w", text, Continuation(tokens=(9, 10))) == "fa40793d578264e737f907827d5b61c4"


def test_what_cannot_be_read_is_named(made: SemiCausal, asking: Asking) -> None:
    [request, *_] = requests(asking)
    cut = MediaSegment(kind=Kind.IMAGE, data=png(16, 24)[:60], size=(16, 24))
    context = asking.context((cut,), name="t/test:3")
    broken = Likelihoods(context=context, continuations=request.continuations)
    with pytest.raises(DataError, match="t/test:3: its image cannot be read"):
        answered(made, [broken], batch=1)


def test_a_model_without_an_image_encoder(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer.json")
    blind = Asking(Tokenizer.from_file(str(tmp_path / "tokenizer.json")), MODEL)
    with pytest.raises(DataError, match="t/test:0: no encoder is known that reads its image"):
        blind.request(EXAMPLES[0], TASK)
    with pytest.raises(DataError, match="the prompt: the model has no encoder that reads its im"):
        blind.context(CONTEXTS[0])


def test_a_sound_that_is_too_long_is_named(asking: Asking) -> None:
    told = r"t/test:3 has a sound of 0\.201 seconds, and its encoder reads 0\.2 at most: raise"
    with pytest.raises(DataError, match=told):
        asking.context((heard(1606),), name="t/test:3")
