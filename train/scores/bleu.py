"""BLEU of all rows together, by `sacrebleu`: n-grams are counted over rows before they divide."""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import numpy as np
from typing_extensions import override

from train.scores.measure import Floats, Metric

_ORDER: Final = 4


class Bleu(Metric):
    """BLEU. Texts are cut into words as `sacrebleu` does by default (13a)."""

    tokenizer: ClassVar[str] = "13a"
    smoothing: ClassVar[str] = "exp"

    def prepared(self, text: str) -> str:
        """A text as it is cut into words."""
        return text

    @override
    def count(self, answer: str, right: Sequence[str]) -> list[float]:
        found = _bleu(self.tokenizer).sentence_score(
            self.prepared(answer), [self.prepared(each) for each in right]
        )
        return [*found.counts, *found.totals, found.sys_len, found.ref_len]

    @override
    def together(self, counts: Floats) -> Floats:
        rows = counts.reshape(-1, counts.shape[-1])[:, 1:]
        return np.array([self._of(row) for row in rows]).reshape(counts.shape[:-1])

    def _of(self, counts: Floats) -> float:
        from sacrebleu.metrics.bleu import BLEU

        n = _ORDER
        whole = [int(count) for count in counts]
        found = BLEU.compute_bleu(
            correct=whole[:n],
            total=whole[n : 2 * n],
            sys_len=whole[2 * n],
            ref_len=whole[2 * n + 1],
            smooth_method=self.smoothing,
            effective_order=False,
            max_ngram_order=n,
        )
        return found.score / 100


@functools.cache
def _bleu(tokenizer: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU

    # The order is of single sentences, which want it; counts are the same without.
    return BLEU(effective_order=True, tokenize=tokenizer)
