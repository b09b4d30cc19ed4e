import json

import pytest

from train.data.store.manifest import parse_manifest
from train.data.tokens import SpecialTokens
from train.errors import DataError


def test_ids_survive_a_manifest() -> None:
    tokens = SpecialTokens(start=9, paragraph=8, document=7, padding=6)
    manifest = json.dumps({"special_tokens": tokens.to_manifest()}).encode()
    assert parse_manifest(manifest, place="corpus").special_tokens == tokens
    assert parse_manifest(b"{}", place="corpus").special_tokens == SpecialTokens()


def test_ids_come_from_a_vocabulary() -> None:
    vocabulary = {"a": 0, "<s>": 5, "</s>": 6, "</d>": 7, "<pad>": 8}
    assert SpecialTokens.from_vocabulary(vocabulary).document == 7


def test_a_tokenizer_without_them_is_refused() -> None:
    with pytest.raises(DataError, match=r"lacks the special tokens </d>, <pad>; add them"):
        SpecialTokens.from_vocabulary({"<s>": 0, "</s>": 1})
