"""Documents to sequences of equal length.

The documents of a split, one after the other, form a single stream: the tokens of each paragraph,
`</s>`; after the last paragraph of a document, `</d>`. Sequence k is `<s>` followed by tokens
[k S, (k+1) S) of that stream, so sentences stay contiguous over paragraphs and documents, a
sentence that reaches the end of a sequence goes on in the next one, nothing is padded, and every
token of the stream is a target exactly once. The last S - 1 tokens or fewer are dropped.

Source: MetaLM §3.2 and RoBERTa's full-sentences packing, where the remainder of a sequence would
be left empty rather than hold the beginning of a sentence.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from train.data.tokens import SpecialTokens

Tokens = npt.NDArray[np.int64]


def document_tokens(paragraphs: Sequence[Tokens], special: SpecialTokens) -> Tokens:
    """The part of the stream that one document makes.

    Args:
        paragraphs: tokens of each paragraph.
        special: ids of `</s>` and `</d>`.
    """
    pieces: list[Tokens] = []
    for paragraph in paragraphs:
        pieces += [paragraph, np.array([special.paragraph])]
    return np.concatenate([*pieces, np.array([special.document])])


def pack(
    documents: Iterable[Tokens], *, sequence_tokens: int, special: SpecialTokens
) -> Iterator[Tokens]:
    """Cut the stream of documents into sequences.

    Args:
        documents: the stream in parts.
        sequence_tokens: S.
        special: id of `<s>`.

    Yields:
        [S + 1] tokens, the first being `<s>`.
    """
    waiting: list[Tokens] = []
    num_waiting = 0
    for document in documents:
        waiting.append(document)
        num_waiting += document.size
        if num_waiting < sequence_tokens:
            continue
        stream = np.concatenate(waiting)
        full = num_waiting // sequence_tokens
        rows = stream[: full * sequence_tokens].reshape(full, sequence_tokens)
        yield from np.insert(rows, 0, special.start, axis=1)
        waiting = [stream[full * sequence_tokens :]]
        num_waiting = waiting[0].size
