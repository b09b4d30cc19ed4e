r"""Prompts with marked spans, `the driver [[maps a page]] of memory`, as inputs of the model.

`[[` opens a span and the next `]]` closes it; a backslash before a mark takes its meaning from it.
"""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import BatchFeature, ProcessorMixin

_MARK = re.compile(r"(\\*)(\[\[(?:([a-z][a-z0-9_]*):)?|\]\])")

_RULES = 7
"""The first normalizers of the tokenizer are so many, which are for text outside of spans."""


def parse(prompt: str, *, modality: str) -> list[tuple[str, bool]]:
    """The parts of a prompt, in order, none of them empty, and whether each is a span.

    Raises:
        ValueError: a span is not closed, lies in another, is empty or of another modality.
    """
    parts: list[tuple[str, bool]] = []
    text, end, opened = "", 0, ""
    for mark in _MARK.finditer(prompt):
        backslashes, sign, named = mark.groups()
        text += prompt[end : mark.start()] + backslashes[: len(backslashes) // 2]
        end = mark.end()
        if len(backslashes) % 2 or (sign == "]]" and not opened):
            text += sign
        elif opened and (sign != "]]" or not text.strip()):
            raise ValueError(_refused(opened, "is empty" if sign == "]]" else "has another in it"))
        elif opened:
            parts.append((text, True))
            text, opened = "", ""
        elif named not in (None, modality):
            raise ValueError(
                f"the prompt's {sign} names a modality that the model reads from no prompt: leave "
                f"it out, or write [[{modality}:{named}: if it is text"
            )
        else:
            # A word's token begins with the space before it.
            parts.append((text.rstrip(" "), False))
            text = text[len(text.rstrip(" ")) :]
            opened = prompt[mark.start(2) :]
    if opened:
        raise ValueError(_refused(opened, "is not closed"))
    return [part for part in [*parts, (text + prompt[end:], False)] if part[0]]


def _refused(opened: str, fault: str) -> str:
    shown = opened if len(opened) <= 40 else f"{opened[:40]}…"
    return (
        f"the prompt's span {shown!r} {fault}: close each span with ]] before the next, and write "
        r"\[[ for the signs themselves"
    )


class SemicausalProcessor(ProcessorMixin):
    """Makes `input_ids`, `attention_mask` and `spans` of prompts, and text of what is generated.

    Args:
        tokenizer: the one that the model was trained with.
        modality: of the encoder that reads spans; None where there is none.
        kwargs: what processors of transformers know besides.
    """

    attributes = ["tokenizer"]  # noqa: RUF012  # transformers' own type
    tokenizer_class = "AutoTokenizer"
    tokenizer: Any

    def __init__(self, tokenizer: Any = None, modality: str | None = None, **kwargs: Any):
        super().__init__(tokenizer)
        self.modality = modality

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]  # it reads text alone
        self, text: str | Sequence[str], **kwargs: Any
    ) -> BatchFeature:
        """Prompts as tensors [B, S], padded on the left.

        Raises:
            ValueError: the marks of a prompt make no sense, or no encoder can read its spans.
        """
        rows = [self._encoded(prompt) for prompt in ([text] if isinstance(text, str) else text)]
        longest = max(len(tokens) for tokens, _ in rows)
        padding = self.tokenizer.pad_token_id
        ids = [[padding] * (longest - len(tokens)) + tokens for tokens, _ in rows]
        spans = [[0] * (longest - len(numbers)) + numbers for _, numbers in rows]
        mask = [[0] * (longest - len(tokens)) + [1] * len(tokens) for tokens, _ in rows]
        data = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        if self.modality is not None:
            data["spans"] = torch.tensor(spans)
        return BatchFeature(data)

    def decode(self, token_ids: Any, **kwargs: Any) -> str:
        """Text of tokens; a blank line ends a paragraph."""
        tokens = [int(token) for token in token_ids]
        paragraph = self.tokenizer.convert_tokens_to_ids("</s>")
        ends = [at for at, token in enumerate(tokens) if token == paragraph]
        kwargs = {"skip_special_tokens": True} | kwargs
        return "\n\n".join(
            self.tokenizer.decode(tokens[last + 1 : end], **kwargs)
            for last, end in pairwise([-1, *ends, len(tokens)])
        )

    def batch_decode(self, sequences: Any, **kwargs: Any) -> list[str]:
        """Texts of rows of tokens."""
        return [self.decode(tokens, **kwargs) for tokens in sequences]

    @property
    def model_input_names(self) -> list[str]:
        """What the model is given."""
        return ["input_ids", "attention_mask", *(["spans"] if self.modality is not None else [])]

    @cached_property
    def _of_spans(self) -> Tokenizer:
        document = json.loads(self.tokenizer.backend_tokenizer.to_str())
        before = document["normalizer"]["normalizers"][_RULES:]
        document["normalizer"] = before[0] if before else None
        return Tokenizer.from_str(json.dumps(document))

    def _encoded(self, prompt: str) -> tuple[list[int], list[int]]:
        start, paragraph = self.tokenizer.convert_tokens_to_ids(["<s>", "</s>"])
        tokens, numbers, num_spans = [start], [0], 0
        parts = parse(prompt, modality=self.modality or "text")
        for number, (text, is_span) in enumerate(parts):
            if is_span and self.modality is None:
                raise ValueError("the model has no text encoder: remove the [[ ]] from the prompt")
            begins, ends = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
            # A line end beside a span ends a paragraph; blank lines do within the tokenizer.
            is_last = number == len(parts) - 1
            body = text if is_span or is_last else text.rstrip()
            if not is_span and number and "\n" in begins:
                tokens.append(paragraph)
                body = body.lstrip("\n") if body.strip() else ""
            if is_span:
                ids = self._of_spans.encode(body, add_special_tokens=False).ids
            else:
                ids = self.tokenizer.encode(body, add_special_tokens=False)
            if not is_span and not is_last and body.strip() and "\n" in ends:
                ids.append(paragraph)
            num_spans += is_span and bool(ids)
            tokens += ids
            numbers += [num_spans if is_span else 0] * (len(tokens) - len(numbers))
        return tokens, numbers
