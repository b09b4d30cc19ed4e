r"""A prompt is text as a corpus holds it, and marks spans: `the driver [[maps a page]] of memory`.

`[[` opens a span and the next `]]` closes it. A name and a colon right behind `[[` say which
modality it is of: `[[text:maps a page]]` is `[[maps a page]]`. A backslash before a mark takes its
meaning from it: `\[[` is `[[` as it stands, and `\\[[` a backslash before a span. Where no span is
open, `]]` is text. Of other modalities a span names an item: `[[image:cat.png]] shows`.

Blank lines end a paragraph, and so does a line end beside a span; `</s>` in a prompt is four
characters, as it is in a text (docs/decisions/0032-one-reading-of-prompts.md).
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from train.data.document import KINDS, MEDIA, Kind
from train.data.segments import BLANK_LINES, MediaSegment, Segment, TextSegment
from train.errors import UserError

# A run of backslashes is looked at once, from its beginning: each of them would cost as many steps.
_MARK: Final = re.compile(r"(?<!\\)(\\*+)(\[\[(?:([a-z][a-z0-9_]*):)?|\]\])")
_SIGN: Final = re.compile(r"(?<!\\)(\\*+)(\[\[|\]\])")

TEXT: Final = "text"
"""The modality that is meant where none is named."""

Items = Callable[[Kind, str], MediaSegment]
"""The item that a prompt names; UserError where there is none."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stretch of a prompt.

    Attributes:
        text: without marks. Spaces before a span belong to it: a word's token begins with its own.
        is_span: whether an encoder reads it.
        medium: name of the modality of what the text names; empty where the text itself is read.
    """

    text: str
    is_span: bool
    medium: str = ""


def parse(prompt: str, *, modality: str | None = TEXT, media: Collection[str] = ()) -> list[Part]:
    """The parts of a prompt, in order, none of them empty.

    Args:
        prompt: as the user wrote it.
        modality: the one that the model's encoder of text has; None without such.
        media: modalities whose spans name what is read; every other name is refused.

    Raises:
        UserError: a span is not closed, lies in another, is empty or of another modality; or the
            prompt is no text.
    """
    if any("\ud800" <= sign <= "\udfff" for sign in prompt):
        raise UserError(f"the prompt {prompt!a} is not UTF-8: write it in UTF-8")
    parts: list[Part] = []
    text, end, opened, medium = "", 0, -1, ""
    for mark in _MARK.finditer(prompt):
        backslashes, sign, named = mark.groups()
        text += prompt[end : mark.start()] + backslashes[: len(backslashes) // 2]
        end = mark.end()
        if len(backslashes) % 2 or (sign == "]]" and opened < 0):
            text += sign
        elif opened >= 0 and sign != "]]":
            raise _refused(prompt, opened, f"has another {sign} in it", at=mark.start(2))
        elif opened >= 0 and not text.strip():
            raise _refused(prompt[:end], opened, "is empty", at=opened)
        elif opened >= 0:
            parts.append(Part(text=text.strip() if medium else text, is_span=True, medium=medium))
            text, opened = "", -1
        elif named not in (None, modality or TEXT, *media):
            meant = rf"\[[{named}:" if modality is None else f"[[{modality}:{named}:"
            raise UserError(
                f"the prompt's {sign} ({_place(prompt, mark.start(2))}) names a modality that the "
                f"model reads from no prompt: leave it out, or write {meant} if it is text"
            )
        else:
            parts.append(Part(text=text.rstrip(" "), is_span=False))
            text = text[len(text.rstrip(" ")) :]
            opened, medium = mark.start(2), named if named and named in media else ""
    if opened >= 0:
        raise _refused(prompt, opened, "is not closed", at=opened)
    parts.append(Part(text=text + prompt[end:], is_span=False))
    return [part for part in parts if part.text]


def plain(prompt: str) -> str:
    """The prompt without marks, for a model that has no encoder.

    Raises:
        UserError: as `parse`.
    """
    return "".join(part.text for part in parse(prompt, modality=None))


def segments_of(
    prompt: str, *, modality: str | None = TEXT, items: Items | None = None
) -> list[Segment]:
    """The segments of a prompt, as those of a document; the last paragraph goes on.

    Args:
        prompt: with marks.
        modality: as for `parse`.
        items: what its marks of other modalities name; without, these are refused.

    Raises:
        UserError: as `parse`, or there is no such item.
    """
    parts = parse(prompt, modality=modality, media=KINDS if items else ())
    found: list[Segment] = []
    for part in parts:
        if part.medium and items:
            found.append(items(KINDS[part.medium], part.text))
            continue
        text = part.text
        begins, ends = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
        last = found[-1] if found else None
        if not part.is_span and "\n" in begins and isinstance(last, TextSegment):
            found[-1] = replace(last, ends_paragraph=True)
        if part.is_span or text.strip():
            does_end = "\n" in ends if part is not parts[-1] else BLANK_LINES.search(ends)
            found.append(
                TextSegment(
                    text=text,
                    is_span=part.is_span,
                    is_scored=False,
                    ends_paragraph=not part.is_span and bool(does_end),
                )
            )
    return found


def shown(segments: Sequence[Segment]) -> str:
    """Segments as a prompt: spans in `[[ ]]`, paragraphs apart by a blank line.

    What an item is, no text can tell: its modality and bytes are shown, as `[[image:812 bytes]]`.

    A bracket right before a mark cannot be told from it: a space comes between.
    """
    found = ""
    for segment in segments:
        if isinstance(segment, MediaSegment):
            found = _before_mark(found.rstrip(" "), "[")
            found += f"[[{MEDIA[segment.kind]}:{len(segment.data):,} bytes]]"
            continue
        text = escaped(segment.text)
        if segment.is_span:
            # Spaces before a span would be the span's.
            found = _before_mark(found.rstrip(" "), "[") + f"[[{_before_mark(text, ']')}]]"
        else:
            found += text.strip("\n")
        found += "\n\n" if segment.ends_paragraph else ""
    return found


def escaped(text: str) -> str:
    """The prompt that is a text, whatever signs it holds."""
    return _SIGN.sub(r"\1\1\\\2", text)


def _before_mark(text: str, bracket: str) -> str:
    """A text that a mark follows, whose meaning its last signs would take."""
    if text.endswith(bracket):
        return f"{text} "
    return text + "\\" * (len(text) - len(text.rstrip("\\")))


def _refused(prompt: str, opened: int, fault: str, *, at: int) -> UserError:
    rest = prompt[opened:]
    shown = rest if len(rest) <= 40 else f"{rest[:40]}…"
    return UserError(
        f"the prompt's span {shown!r} {fault} ({_place(prompt, at)}): close each span with ]] "
        r"before the next, and write \[[ for the signs themselves"
    )


def _place(prompt: str, at: int) -> str:
    """Where a character lies, as editors count."""
    before = prompt[:at].split("\n")
    return f"line {len(before)}, character {len(before[-1]) + 1}"
