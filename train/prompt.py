r"""How a prompt marks the spans that an encoder reads: `the driver [[maps a page]] of memory`.

`[[` opens a span and the next `]]` closes it. A name and a colon right behind `[[` say which
modality it is of: `[[text:maps a page]]` is `[[maps a page]]`. A backslash before a mark takes its
meaning from it: `\[[` is `[[` as it stands, and `\\[[` a backslash before a span. Where no span is
open, `]]` is text.
"""

import re
from dataclasses import dataclass
from typing import Final

from train.errors import UserError

# A run of backslashes is looked at once, from its beginning: each of them would cost as many steps.
_MARK: Final = re.compile(r"(?<!\\)(\\*+)(\[\[(?:([a-z][a-z0-9_]*):)?|\]\])")

TEXT: Final = "text"
"""The modality that is meant where none is named."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stretch of a prompt.

    Attributes:
        text: without marks. Spaces before a span belong to it: a word's token begins with its own.
        is_span: whether an encoder reads it.
    """

    text: str
    is_span: bool


def parse(prompt: str, *, modality: str = TEXT) -> list[Part]:
    """The parts of a prompt, in order, none of them empty.

    Args:
        prompt: as the user wrote it.
        modality: the one that the model reads as text; every other name is refused.

    Raises:
        UserError: a span is not closed, lies in another, is empty or of another modality; or the
            prompt is no text.
    """
    if any("\ud800" <= sign <= "\udfff" for sign in prompt):
        raise UserError(f"the prompt {prompt!a} is not UTF-8: write it in UTF-8")
    parts: list[Part] = []
    text, end, opened = "", 0, -1
    for mark in _MARK.finditer(prompt):
        backslashes, sign, named = mark.groups()
        text += prompt[end : mark.start()] + backslashes[: len(backslashes) // 2]
        end = mark.end()
        if len(backslashes) % 2 or (sign == "]]" and opened < 0):
            text += sign
        elif opened >= 0 and sign != "]]":
            raise _refused(prompt, opened, f"has another {sign} in it", at=mark.start(2))
        elif opened >= 0 and not text.strip():
            raise _refused(prompt, opened, "is empty", at=opened)
        elif opened >= 0:
            parts.append(Part(text=text, is_span=True))
            text, opened = "", -1
        elif named not in (None, modality):
            raise UserError(
                f"the prompt's {sign} ({_place(prompt, mark.start(2))}) names a modality that the "
                f"model reads from no prompt: leave it out, or write [[{modality}:{named}: if it "
                "is text"
            )
        else:
            parts.append(Part(text=text.rstrip(" "), is_span=False))
            text = text[len(text.rstrip(" ")) :]
            opened = mark.start(2)
    if opened >= 0:
        raise _refused(prompt, opened, "is not closed", at=opened)
    parts.append(Part(text=text + prompt[end:], is_span=False))
    return [part for part in parts if part.text]


def plain(prompt: str, *, modality: str = TEXT) -> str:
    """The prompt without marks, for a model that has no encoder.

    Raises:
        UserError: as `parse`.
    """
    return "".join(part.text for part in parse(prompt, modality=modality))


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
