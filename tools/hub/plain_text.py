"""A tokenizer.json that reads plain text as training read it, for whoever knows nothing of ours.

It begins a text with `<s>`, makes `</s>` of blank lines, drops spaces at the end, and shows `</s>`
as a blank line (docs/decisions/0032-one-reading-of-prompts.md). All is written into the file as it
stands, so that it comes back to the byte.
"""

import json
import re
from typing import Any, Final

from train.data.tokens import SPECIAL_TEXT, SpecialTokens

_PARAGRAPH: Final = SPECIAL_TEXT["paragraph"]

_TEMPLATE: Final = (
    '{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},'
    '{"Sequence":{"id":"A","type_id":0}}],"pair":[{"SpecialToken":{"id":"<s>","type_id":0}},'
    '{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":0}}],"special_tokens":'
    '{"<s>":{"id":"<s>","ids":[%d],"tokens":["<s>"]}}}'
)

_BLANK: Final = r"\n(?:[^\S\n]*\n)+"  # as `train.data.segments` has it
_RULES: Final = (
    (r"\r\n", "\n"),
    (r"\A\s+\z", ""),
    (r"\A[^\S\n]*" + _BLANK, ""),
    (r"\A\n+", ""),
    (r"[^\S\n]*" + _BLANK, _PARAGRAPH),
    (r"[^\S\n]*\n[^\S\n]*\z", "\n"),
    (r"[^\S\n]+\z", ""),
)
"""What becomes of white space in a prompt."""


def _dumped(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


_NORMALIZERS: Final = ",".join(
    _dumped({"type": "Replace", "pattern": {"Regex": pattern}, "content": content})
    for pattern, content in _RULES
)
_BEFORE_NORMALIZER: Final = f'{{"type":"Sequence","normalizers":[{_NORMALIZERS}'
_DECODER: Final = _dumped({"type": "Replace", "pattern": {"String": _PARAGRAPH}, "content": "\n\n"})
_BEFORE_DECODER: Final = f'{{"type":"Sequence","decoders":[{_DECODER}'
_BEHIND: Final = "]}"

_ENTRY: Final = re.compile(r'\{[^{}]*"content":\s*"' + re.escape(_PARAGRAPH) + r'"[^{}]*\}')
# A flag that is changed has a space behind it, by which it is known.
_CHANGED: Final = {"normalized": ("false", "true "), "special": ("true", "false ")}


def as_read(content: bytes, special: SpecialTokens, *, has_paragraphs: bool = True) -> bytes:
    """A tokenizer.json of training, for plain text.

    What puts something before a text already does so still.

    Args:
        content: of the file.
        special: ids of its special tokens.
        has_paragraphs: whether `</s>` ends them, as in corpora of ours.
    """
    text = content.decode()
    if _value(text, "post_processor") == "null":
        text = _with_value(text, "post_processor", _TEMPLATE % special.start)
    if not has_paragraphs:
        return text.encode()
    for key, before in (("normalizer", _BEFORE_NORMALIZER), ("decoder", _BEFORE_DECODER)):
        old = _value(text, key)
        if old is not None:
            inner = "" if old == "null" else f",{old}"
            text = _with_value(text, key, f"{before}{inner}{_BEHIND}")
    return _flagged(text, {key: (old, new) for key, (old, new) in _CHANGED.items()}).encode()


def as_trained(content: bytes) -> bytes:
    """A tokenizer.json without what `as_read` has put there."""
    text = content.decode()
    template = re.escape(_TEMPLATE).replace(re.escape("%d"), r"\d+")
    text = re.sub(template, "null", text, count=1)
    for key, before in (("normalizer", _BEFORE_NORMALIZER), ("decoder", _BEFORE_DECODER)):
        found = _value(text, key)
        if found is not None and found.startswith(before):
            inner = found.removeprefix(before).removesuffix(_BEHIND)
            text = _with_value(text, key, inner.removeprefix(",") or "null")
    return _flagged(text, {key: (new, old) for key, (old, new) in _CHANGED.items()}).encode()


def _place(text: str, key: str) -> tuple[int, int] | None:
    """Where the value of a key of the whole document lies."""
    found = re.search(rf'"{key}":\s*', text)
    if found is None:
        return None
    _, end = json.JSONDecoder().raw_decode(text, found.end())
    return found.end(), end


def _value(text: str, key: str) -> str | None:
    place = _place(text, key)
    return None if place is None else text[slice(*place)]


def _with_value(text: str, key: str, value: str) -> str:
    place = _place(text, key)
    assert place is not None, "it was found before"
    return text[: place[0]] + value + text[place[1] :]


def _flagged(text: str, changes: dict[str, tuple[str, str]]) -> str:
    """The entry of `</s>` with other flags."""
    found = _ENTRY.search(text)
    if found is None:
        return text
    entry = found[0]
    for key, (old, new) in changes.items():
        entry = re.sub(rf'("{key}":\s*){old}(?=\s*[,}}])', rf"\g<1>{new}", entry)
    return text[: found.start()] + entry + text[found.end() :]
