"""What a model that knows only token frequencies would score; a trained one must beat it."""

import numpy as np
import numpy.typing as npt


def unigram_cross_entropy(
    train_counts: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]
) -> float:
    """Cross-entropy, in nats a token, of the training corpus's unigram distribution on `targets`.

    The counts are smoothed by adding one, so that a token unseen in training has a finite cost.

    Args:
        train_counts: [V] how often each token occurs in the training corpus.
        targets: [n] tokens to predict, such as the scored targets of the validation set.

    Raises:
        ValueError: there is no target, or one lies outside the vocabulary.
    """
    if targets.size == 0:
        raise ValueError("no target tokens: the validation set scores nothing")
    vocabulary = train_counts.size
    if targets.min() < 0 or targets.max() >= vocabulary:
        raise ValueError(
            f"target tokens range over {targets.min()}…{targets.max()}, outside the vocabulary of "
            f"{vocabulary}: the counts are of another tokenizer"
        )
    smoothed = train_counts.astype(np.float64) + 1.0
    log_probabilities = np.log(smoothed) - np.log(smoothed.sum())
    target_counts = np.bincount(targets, minlength=vocabulary)
    return -float(target_counts @ log_probabilities) / targets.size
