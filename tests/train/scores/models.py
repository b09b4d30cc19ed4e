"""A tiny model with random weights, and requests to ask it."""

import numpy as np
import torch

from model.layers import initialize
from model.semicausal import ModelConfig, SemiCausal
from tests.corpora import VOCABULARY
from train.data.collate import Collator
from train.data.sample import Sample
from train.data.spans.given import StoredSpansConfig
from train.data.spans.protocol import SpanCapacity
from train.data.spans.text import TextReader
from train.scores.request import Context, Continuation, Generation, Likelihoods

LONGEST_SPAN = 12
MODEL = ModelConfig.model_validate(
    {
        "decoder": {
            "vocabulary": VOCABULARY,
            "width": 32,
            "num_layers": 2,
            "heads": 4,
            "feed_forward": 64,
            "max_tokens": 64,
        },
        "encoders": {
            "text": {
                "encoder": {
                    "width": 16,
                    "num_layers": 2,
                    "heads": 2,
                    "feed_forward": 32,
                    "max_tokens": LONGEST_SPAN + 1,
                    "dropout": 0.0,
                }
            }
        },
    }
)


def model() -> SemiCausal:
    """The same each time, sure enough of itself that rounding decides nothing."""
    torch.manual_seed(0)
    made = SemiCausal(MODEL).eval()
    initialize(made, seed=0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def likelihoods(count: int = 23, *, seed: int = 0) -> list[Likelihoods]:
    """Contexts of 1 to 30 tokens, with spans or without, and 1 to 5 continuations of each."""
    random = np.random.default_rng(seed)
    found: list[Likelihoods] = []
    for _ in range(count):
        tokens = (0, *random.integers(10, VOCABULARY, int(random.integers(30))).tolist())
        spans: list[tuple[int, int]] = []
        at = 1
        while at + 2 < len(tokens) and random.random() < 0.7:
            stop = min(len(tokens), at + int(random.integers(1, LONGEST_SPAN)))
            spans.append((at, stop))
            at = stop + int(random.integers(0, 3))
        continuations: list[Continuation] = []
        for _ in range(int(random.integers(1, 6))):
            size = int(random.integers(1, 7))
            text = tuple(random.integers(10, VOCABULARY, size).tolist())
            continuations.append(Continuation(tokens=text, given=int(random.integers(size))))
        context = Context(tokens=tokens, spans=tuple(spans))
        found.append(Likelihoods(context=context, continuations=tuple(continuations)))
    return found


def generations(count: int = 9) -> list[Generation]:
    """Contexts to go on from."""
    return [
        Generation(context=asked.context, max_new_tokens=3 + number % 5, stop_tokens=(1, 2))
        for number, asked in enumerate(likelihoods(count, seed=1))
    ]


def one_at_a_time(made: SemiCausal, asked: Likelihoods) -> list[float]:
    """What training's own loss says of each continuation, alone in a batch, without any cache."""
    found: list[float] = []
    for each in asked.continuations:
        tokens = np.array([*asked.context.tokens, *each.tokens])
        counted = np.zeros(len(tokens), dtype=np.bool_)
        counted[len(tokens) - len(each.tokens) + each.given :] = True
        spans = np.array(asked.context.spans, dtype=np.int64).reshape(-1, 2)
        sample = Sample(id=0, tokens=tokens, spans=spans, scored=counted)
        capacity = SpanCapacity(tokens=64, spans=64, longest_tokens=LONGEST_SPAN)
        reader = TextReader(kind=StoredSpansConfig(kind="stored"), capacity=capacity)
        collate = Collator(sequence_tokens=len(tokens) - 1, readers={"text": reader}, padding=3)
        with torch.no_grad():
            loss = made(collate([(0, sample)]))
        found.append(-float(loss.terms[: int(counted.sum())].double().sum()))
    return found
