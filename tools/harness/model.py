"""The model that `lm-eval --model semicausal` names: a run or one of its checkpoints."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from model import torchvision_free
from parallel.launch import World
from parallel.mesh import LayoutConfig
from train.checkpoint.directory import resolve
from train.errors import DataError
from train.loading import load_engine
from train.prompt import escaped
from train.scores.opening import Opened, open_model
from train.scores.request import Context, Continuation, Generation, Likelihood, Likelihoods
from train.storage.place import Place
from train.words import Words

NAME = "semicausal"

SPANS: Final = "semicausal_spans"
"""Column of rows whose prompts mark spans; in all others `[[` is text, as their authors meant."""


def register() -> None:
    """Makes the model known to lm-eval, of this process, beside its own."""
    torchvision_free.install()  # else `hf` imports no model of transformers beside a CPU's torch
    importlib.import_module("lm_eval.models")
    registry: Any = importlib.import_module("lm_eval.api.registry")
    registry.register_model(NAME)(_model_class())


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What lm-eval gives a model to read.

    Attributes:
        context: of the request.
        has_spans: whether `[[ ]]` marks them in it, see `SPANS`.
    """

    context: str
    has_spans: bool = False

    def prompt(self, text: str = "") -> str:
        """The context, and a text behind it, in the form that `train/prompt.py` reads."""
        if self.has_spans:
            return self.context + escaped(text)
        return escaped(self.context + text)


class Harness:
    """Answers lm-eval's three kinds of requests, as its own models do, with what training read.

    Args:
        checkpoint: a run or one of its checkpoints.
        batch: contexts that are read at once.
        answers: file that keeps answers; None for none.
    """

    def __init__(self, checkpoint: str, *, batch: int = 16, answers: Path | None = None):
        path = resolve(Place.parse(checkpoint))
        engine = load_engine(path, layout=LayoutConfig(), world=World.here())
        self._opened: Opened = open_model(path, engine, answers=answers, batch=batch)
        self._most_slots = engine.module.config.decoder.max_tokens

    def tokens(self, text: str) -> tuple[int, ...]:
        """Of a text, behind `<s>`."""
        return self._opened.asking.prompt(escaped(text)).tokens

    def likelihoods(self, pairs: Sequence[tuple[Asked, str]]) -> list[tuple[float, bool]]:
        """Log-likelihood of each text behind its context, and whether it is the greedy one.

        White space at the end of a context belongs to the text, as lm-eval's own models have it. Of
        a context that has no room before its text only the end is read.

        Raises:
            DataError: a text makes no tokens, or more than the model has positions for.
        """
        prompt = self._opened.asking.prompt
        asked: list[tuple[Context, Continuation]] = []
        for given, text in pairs:
            before = replace(given, context=given.context.rstrip())
            behind = given.context[len(before.context) :] + text
            read = prompt(before.prompt())
            tokens = prompt(before.prompt(behind)).tokens[len(read.tokens) :]
            if not 0 < len(tokens) <= self._most_slots:
                raise DataError(
                    f"{text!r:.80} makes {len(tokens)} tokens behind a context: it needs 1 at "
                    f"least, and {self._most_slots} at most"
                )
            room = self._most_slots + 1 - len(tokens)
            asked.append((_end_of(read, room), Continuation(tokens=tokens)))
        return self._ask(asked)

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """Log-likelihood of each text, every token once, behind as much of it as has room."""
        most = self._most_slots
        found: list[float] = []
        for text in texts:
            tokens = self.tokens(text)
            # Windows of as many new tokens as there are positions; what is left at the end stands
            # behind as much of the text as has room.
            windows = [
                (tokens[max(0, stop - most - 1) : begin], tokens[begin:stop])
                for begin in range(1, len(tokens), most)
                for stop in [min(begin + most, len(tokens))]
            ]
            answers = self._ask(
                [(Context(tokens=context), Continuation(tokens=new)) for context, new in windows]
            )
            found.append(sum(value for value, _ in answers))
        return found

    def generated(self, asked: Sequence[tuple[Asked, dict[str, Any]]]) -> list[str]:
        """What follows each prompt, up to the first of its stop strings.

        Of a prompt that has no room before its answer only the end is read, but half as many tokens
        as the model has positions at least.
        """
        asking = self._opened.asking
        requests: list[Generation] = []
        for given, options in asked:
            most_new = int(options.get("max_gen_toks", 256))
            ends = {asking.special.document}
            if not {"\n", "\n\n"}.isdisjoint(_until(options)):  # which a paragraph's end is
                ends.add(asking.special.paragraph)
            room = max(self._most_slots - most_new, self._most_slots // 2)
            requests.append(
                Generation(
                    context=_end_of(asking.prompt(given.prompt()), room),
                    max_new_tokens=most_new,
                    stop_tokens=tuple(sorted(ends)),
                )
            )
        found: list[str] = []
        answers = self._opened.scorer.ask(requests)
        for (_, options), (answer,) in zip(asked, answers, strict=True):
            assert isinstance(answer, list)
            words = Words(
                lambda tokens: self._opened.decode([*tokens]),
                paragraph=asking.special.paragraph,
                stop=_until(options),
            )
            for token in answer:
                words.add(token)
            words.finish()
            found.append(words.text)
        return found

    def _ask(self, pairs: Sequence[tuple[Context, Continuation]]) -> list[tuple[float, bool]]:
        # What shares a context is one request, which reads it once.
        by_context: dict[Context, list[int]] = {}
        for number, (context, _) in enumerate(pairs):
            by_context.setdefault(context, []).append(number)
        requests = [
            Likelihoods(
                context=context, continuations=tuple(pairs[number][1] for number in numbers)
            )
            for context, numbers in by_context.items()
        ]
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        answers = self._opened.scorer.ask(requests)
        for numbers, of_context in zip(by_context.values(), answers, strict=True):
            for number, answer in zip(numbers, of_context, strict=True):
                assert isinstance(answer, Likelihood)
                found[number] = (answer.log_likelihood, answer.is_greedy)
        return found


def asked_of(request: Any) -> Asked:
    """Of an instance of lm-eval, which knows its row."""
    row = request.doc
    has_spans = isinstance(row, dict) and row.get(SPANS) is True
    return Asked(context=request.args[0], has_spans=has_spans)


def _until(options: dict[str, Any]) -> list[str]:
    until = options.get("until") or []
    return [until] if isinstance(until, str) else list(until)


def _end_of(context: Context, room: int) -> Context:
    """As much of a context's end as has room, as lm-eval's own models read; spans are cut too."""
    cut = len(context.tokens) - room
    if cut <= 0:
        return context
    spans = tuple((max(0, begin - cut), end - cut) for begin, end in context.spans if end > cut)
    return Context(tokens=context.tokens[cut:], spans=spans)


def _model_class() -> Any:
    """The class that lm-eval makes, in the form that it asks for."""
    base: Any = importlib.import_module("lm_eval.api.model").LM

    class Semicausal(base):
        def __init__(self, checkpoint: str, batch_size: Any = None, **_: Any) -> None:
            super().__init__()
            size = str(batch_size or "")
            self._harness = Harness(checkpoint, batch=int(size) if size.isdigit() else 16)

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            pairs = [(asked_of(request), request.args[1]) for request in requests]
            return self._harness.likelihoods(pairs)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return self._harness.rolling([request.args[0] for request in requests])

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            asked = [(asked_of(request), request.args[1]) for request in requests]
            return self._harness.generated(asked)

    return Semicausal
