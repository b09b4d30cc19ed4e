"""A tokenizer of others with our four special tokens in the place of entries that nothing uses."""

import json
import re
from typing import Any, Final

from train.data.tokens import SPECIAL_TEXT
from train.errors import CheckpointError, told

_UNUSED: Final = re.compile(r"\[unused\d+\]|<unused\d+>|<\|reserved_special_token_\d+\|>")


def read_ids(content: bytes, *, name: str) -> tuple[Any, dict[str, int]]:
    """A tokenizer.json, and the ids of its entries by what they say.

    Args:
        content: of the tokenizer.json.
        name: of the file, for messages.

    Raises:
        CheckpointError: it is no tokenizer.json.
    """
    try:
        document: Any = json.loads(content)
        vocabulary: Any = document["model"].get("vocab", {})
        added: list[dict[str, Any]] = document.setdefault("added_tokens", [])
        ids: dict[str, Any] = dict(vocabulary) if isinstance(vocabulary, dict) else {}
        ids |= {token["content"]: token["id"] for token in added}
        if odd := [text for text, number in ids.items() if type(number) is not int]:
            raise ValueError(f"the id of {odd[0][:40]!r} is no number")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{name} is no tokenizer.json of the tokenizers library: {told(error)}; copy it again"
        ) from None
    return document, ids


def with_special_tokens(content: bytes, *, name: str) -> tuple[bytes, list[str]]:
    """A tokenizer.json that knows `<s>`, `</s>`, `</d>` and `<pad>`, as far as it has room.

    No id is new, so the model's table fits; texts are encoded as before, for no text has the
    entries that are renamed.

    Args:
        content: of the tokenizer.json.
        name: of the file, for messages.

    Returns:
        The file, and which of the four it still lacks: it has too few unused entries.

    Raises:
        CheckpointError: it is no tokenizer.json.
    """
    document, ids = read_ids(content, name=name)
    vocabulary, added = document["model"].get("vocab"), document["added_tokens"]
    entries: dict[str, int] = vocabulary if isinstance(vocabulary, dict) else {}
    unused = sorted((text for text in ids if _UNUSED.fullmatch(text)), key=ids.__getitem__)
    lacking = [text for text in SPECIAL_TEXT.values() if text not in ids]
    if not lacking:
        return content, []
    for text, old in zip(lacking, unused, strict=False):
        if old in entries:
            entries[text] = entries.pop(old)
        added[:] = [token for token in added if token["content"] != old]
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added.append({"id": ids[old], "content": text, **flags, "special": True})
    added.sort(key=lambda token: token["id"])
    return json.dumps(document, ensure_ascii=False).encode(), lacking[len(unused) :]
