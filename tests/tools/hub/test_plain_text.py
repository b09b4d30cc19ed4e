"""A text is the same tokens whoever reads it: we, a corpus, plain transformers on an export."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.corpora import write_tokenizer
from tests.train.test_prompt import MODEL
from tools.corpus.encoding import Encoded, Encoder
from tools.corpus.entries import Entry
from tools.corpus.tokenizer import CorpusTokenizer
from tools.hub.plain_text import as_read, as_trained
from tools.hub.shipped.processing_semicausal import SemicausalProcessor
from train.asked import PromptEncoder
from train.data.document import Document
from train.data.tokens import SpecialTokens, read_tokenizer
from train.errors import UserError
from train.prompt import escaped, segments_of
from train.scores.asking import Asking

TEXTS = st.text(alphabet="ab .é\n\t", max_size=12)
MARKED = st.lists(st.sampled_from(["a", " ", "\n", "\n\n", "[[", "]]", "\\", " b", ".", "é"])).map(
    "".join
)


@dataclass(frozen=True, kw_only=True)
class Readers:
    """Everybody who reads prompts."""

    ours: PromptEncoder
    scorer: Asking
    corpus: Encoder
    theirs: Any
    processor: SemicausalProcessor


@pytest.fixture(scope="module", params=["plain", "normalizing", "pretty"])
def readers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Readers:
    path: Path = tmp_path_factory.mktemp("readers") / "tokenizer.json"
    write_tokenizer(path)
    document = json.loads(path.read_text())
    if request.param == "normalizing":
        document["normalizer"] = {"type": "NFC"}
    path.write_text(json.dumps(document, indent=2 if request.param == "pretty" else None))
    content = path.read_bytes()
    exported = path.with_name("exported.json")
    exported.write_bytes(as_read(content, SpecialTokens()))
    assert as_trained(exported.read_bytes()) == content
    theirs: Any = PreTrainedTokenizerFast(
        tokenizer_file=str(exported), bos_token="<s>", eos_token="</d>", pad_token="<pad>"
    )
    return Readers(
        ours=PromptEncoder(read_tokenizer(content, name="it")),
        scorer=Asking(Tokenizer.from_str(content.decode()), MODEL),
        corpus=Encoder(CorpusTokenizer.from_content(content, name="it"), has_media=False),
        theirs=theirs,
        processor=SemicausalProcessor(theirs, modality="text"),
    )


def each(strategy: st.SearchStrategy[str], *first: str) -> Callable[[Any], Any]:
    def decorate(test: Any) -> Any:
        made = given(text=strategy)(test)
        for text in first:
            made = example(text=text)(made)
        return settings(deadline=None, max_examples=150)(made)

    return decorate


@each(TEXTS, "a\n\nb", "a \n", " \n", "\n\na  \n \n b ", "a\nb\r\n\r\nc", "[[a]] \\[[")
def test_a_plain_text_is_the_same_tokens_through_lm_eval_and_transformers(
    readers: Readers, text: str
) -> None:
    tokens = readers.ours(escaped(text)).tokens
    assert [*readers.scorer.prompt(escaped(text)).tokens] == tokens
    assert readers.theirs(text)["input_ids"] == tokens
    assert readers.processor(escaped(text))["input_ids"][0].tolist() == tokens
    # What is shown reads back as it was.
    shown = readers.theirs.decode(tokens, skip_special_tokens=True)
    assert shown == readers.processor.decode(tokens)
    assert readers.ours(escaped(shown)).tokens == tokens


@each(MARKED, "[[ a ]]\nb\n\n[[c\n\nd ]] \n", "a\n[[b]]\n[[ b]]", "[[a]] \n a", "a\\[[b")
def test_spans_are_the_same_tokens(readers: Readers, text: str) -> None:
    try:
        read = readers.ours(text)
    except UserError:
        with pytest.raises(ValueError, match="the prompt's span"):
            readers.processor(text)
        return
    context = readers.scorer.prompt(text)
    assert ([*context.tokens], [*context.spans]) == (read.tokens, read.spans)
    theirs = readers.processor(text)
    assert theirs["input_ids"][0].tolist() == read.tokens
    numbers = [0] * len(read.tokens)
    for number, (begin, end) in enumerate(read.spans, 1):
        numbers[begin:end] = [number] * (end - begin)
    assert theirs["spans"][0].tolist() == numbers


@each(MARKED)
def test_a_corpus_holds_a_prompt_and_its_answer(readers: Readers, text: str) -> None:
    try:
        segments = segments_of(text)
    except UserError:
        return
    if not segments:
        return
    read = readers.ours(text)
    (stored,) = readers.corpus([Entry(id="a", pieces=tuple(segments))])
    assert isinstance(stored, Encoded)
    document = Document.from_columns(dict(stored.columns))
    *tokens, end = document.tokens.tolist()
    assert end == 2
    # A line end behind the last paragraph waits for what follows.
    assert read.tokens[: len(tokens) + 1] == [0, *tokens]
    assert readers.theirs.decode(read.tokens[len(tokens) + 1 :]) in ("", "\n")
    assert [(begin + 1, end + 1) for begin, end in document.spans.tolist()] == read.spans
