r"""Prompts with marked spans, `the driver [[maps a page]] of memory`, as inputs of the model.

`[[` opens a span and the next `]]` closes it; a backslash before a mark takes its meaning from it.
`[[image:...]]` stands for a picture, whatever it is called there: pictures are given in order.
"""

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import BatchFeature, ProcessorMixin

from .pictures_semicausal import patches_of

# A run of backslashes is looked at once, from its beginning: each of them would cost as many steps.
_MARK = re.compile(r"(?<!\\)(\\*+)(\[\[(?:([a-z][a-z0-9_]*):)?|\]\])")

_RULES = 7
"""The first normalizers of the tokenizer are so many, which are for text outside of spans."""


def parse(
    prompt: str, *, modality: str | None, media: Sequence[str] = ()
) -> list[tuple[str, bool, str]]:
    """The parts of a prompt, in order, none of them empty; whether each is a span, and of what.

    Args:
        prompt: as the user wrote it.
        modality: of text that an encoder reads; None without one.
        media: modalities whose spans name what is given beside the prompt.

    Raises:
        ValueError: a span is not closed, lies in another, is empty or of another modality.
    """
    parts: list[tuple[str, bool, str]] = []
    text, end, opened, medium = "", 0, "", ""
    for mark in _MARK.finditer(prompt):
        backslashes, sign, named = mark.groups()
        text += prompt[end : mark.start()] + backslashes[: len(backslashes) // 2]
        end = mark.end()
        if len(backslashes) % 2 or (sign == "]]" and not opened):
            text += sign
        elif opened and (sign != "]]" or not text.strip()):
            raise ValueError(_refused(opened, "is empty" if sign == "]]" else "has another in it"))
        elif opened:
            parts.append((text.strip() if medium else text, True, medium))
            text, opened = "", ""
        elif named not in (None, modality or "text", *media):
            meant = rf"\[[{named}:" if modality is None else f"[[{modality}:{named}:"
            raise ValueError(
                f"the prompt's {sign} names a modality that the model reads from no prompt: leave "
                f"it out, or write {meant} if it is text"
            )
        else:
            # A word's token begins with the space before it.
            parts.append((text.rstrip(" "), False, ""))
            text = text[len(text.rstrip(" ")) :]
            opened, medium = prompt[mark.start(2) :], named if named and named in media else ""
    if opened:
        raise ValueError(_refused(opened, "is not closed"))
    return [part for part in [*parts, (text + prompt[end:], False, "")] if part[0]]


def _refused(opened: str, fault: str) -> str:
    shown = opened if len(opened) <= 40 else f"{opened[:40]}…"
    return (
        f"the prompt's span {shown!r} {fault}: close each span with ]] before the next, and write "
        r"\[[ for the signs themselves"
    )


class SemicausalProcessor(ProcessorMixin):
    """Makes inputs of prompts and pictures, and text of what is generated.

    Args:
        tokenizer: the one that the model was trained with.
        modality: of the encoder that reads spans of text; None where there is none.
        image: how pictures are read, as the run's configuration has it; None where none are.
        kwargs: what processors of transformers know besides.
    """

    attributes = ["tokenizer"]  # noqa: RUF012  # transformers' own type
    tokenizer_class = "AutoTokenizer"
    tokenizer: Any

    def __init__(
        self,
        tokenizer: Any = None,
        modality: str | None = None,
        image: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        super().__init__(tokenizer)
        self.modality = modality
        self.image = image

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]  # in its own order
        self, text: str | Sequence[str], images: Any = None, **kwargs: Any
    ) -> BatchFeature:
        """Prompts as tensors [B, S], padded on the left, and the pictures in them as patches.

        Args:
            text: prompts.
            images: of Pillow or numpy, one for each `[[image:...]]`, in the order of all prompts.
            kwargs: what callers of other processors give besides.

        Raises:
            ValueError: the marks of a prompt make no sense, no encoder can read its spans, or
                there are more or fewer pictures than marks.
        """
        given = [] if images is None else list(images) if _is_list(images) else [images]
        if given and self.image is None:
            raise ValueError("images: the model has no encoder of pictures")
        read = [patches_of(image, self.image) for image in given] if self.image else []
        counts = [self._slots(*grid) for _, grid in read]
        left = iter(enumerate(counts, 1))
        prompts = [text] if isinstance(text, str) else text
        rows = [self._encoded(prompt, left) for prompt in prompts]
        if (unused := next(left, None)) is not None:
            raise ValueError(
                f"images: {len(given)} are given, and the prompts have {unused[0] - 1} "
                "[[image:...]] marks: give one for each"
            )
        longest = max(len(tokens) for tokens, _, _ in rows)
        padding = self.tokenizer.pad_token_id

        def laid(column: int, filler: int) -> torch.Tensor:
            return torch.tensor([[filler] * (longest - len(r[0])) + r[column] for r in rows])

        mask = [[0] * (longest - len(row[0])) + [1] * len(row[0]) for row in rows]
        data = {"input_ids": laid(0, padding), "attention_mask": torch.tensor(mask)}
        if self.modality is not None:
            data["spans"] = laid(1, 0)
        if read:
            most = max(len(patches) for patches, _ in read)
            values = read[0][0].new_zeros(len(read), most, read[0][0].shape[1])
            for number, (patches, _) in enumerate(read):
                values[number, : len(patches)] = patches
            data["pixel_values"] = values
            data["spatial_shapes"] = torch.tensor([grid for _, grid in read])
            data["pixel_slots"] = laid(2, 0)
        return BatchFeature(data)

    def _slots(self, rows: int, columns: int) -> int:
        """Slots of a picture of so many patches."""
        assert self.image is not None, "pictures were read"
        # Folders from before there were connectors with queries do not have the key.
        return self.image.get("queries") or rows * columns + (self.image["class_token"] == "kept")

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
        pictures = ["pixel_values", "spatial_shapes", "pixel_slots"]
        return [
            *("input_ids", "attention_mask"),
            *(["spans"] if self.modality is not None else []),
            *(pictures if self.image is not None else []),
        ]

    @cached_property
    def _of_spans(self) -> Tokenizer:
        document = json.loads(self.tokenizer.backend_tokenizer.to_str())
        before = document["normalizer"]["normalizers"][_RULES:]
        document["normalizer"] = before[0] if before else None
        return Tokenizer.from_str(json.dumps(document))

    def _encoded(
        self, prompt: str, pictures: Iterator[tuple[int, int]]
    ) -> tuple[list[int], list[int], list[int]]:
        """Tokens of a prompt, and of each the number of its span of text and of its picture."""
        start, paragraph = self.tokenizer.convert_tokens_to_ids(["<s>", "</s>"])
        tokens, numbers, of_pictures, num_spans = [start], [0], [0], 0
        media = () if self.image is None else ("image",)
        # Without an encoder of text its mark is read all the same, and refused below.
        parts = parse(prompt, modality=self.modality or "text", media=media)
        for number, (text, is_span, medium) in enumerate(parts):
            if medium:
                found = next(pictures, None)
                if found is None:
                    raise ValueError(
                        f"images: there is none for [[{medium}:{text}]]: give one for each mark"
                    )
                tokens += [self.tokenizer.pad_token_id] * found[1]
                numbers += [0] * found[1]
                of_pictures += [found[0]] * found[1]
                continue
            if is_span and self.modality is None:
                raise ValueError("the model has no text encoder: remove the [[ ]] from the prompt")
            begins, ends = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
            # A line end beside a span ends a paragraph; blank lines do within the tokenizer.
            is_last = number == len(parts) - 1
            body = text if is_span or is_last else text.rstrip()
            if not is_span and number and "\n" in begins:
                if not parts[number - 1][2]:  # a picture ends no paragraph
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
            of_pictures += [0] * (len(tokens) - len(of_pictures))
        return tokens, numbers, of_pictures


def _is_list(images: Any) -> bool:
    return isinstance(images, list | tuple)
