"""Constrained choice: what is generated is one of some given token sequences."""

from collections.abc import Sequence


class Choices:
    """A tree of token sequences, of which one is to be generated.

    Args:
        sequences: what may be generated.
        stop_token: follows a sequence where it is the beginning of another one, to end it there.

    Raises:
        ValueError: there is none, two are equal, one is empty, or one is the beginning of another
            and there is no stop token.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], *, stop_token: int | None = None):
        if not sequences:
            raise ValueError("there is nothing to choose from: name a choice")
        self._sequences = [tuple(sequence) for sequence in sequences]
        if len(set(self._sequences)) < len(self._sequences):
            raise ValueError("two choices are the same tokens: leave one out")
        self._next: dict[tuple[int, ...], list[int]] = {}
        for sequence in self._sequences:
            if not sequence:
                raise ValueError("a choice has no tokens: leave it out")
            for length in range(len(sequence)):
                follows = self._next.setdefault(sequence[:length], [])
                if sequence[length] not in follows:
                    follows.append(sequence[length])
        for sequence in self._sequences:
            if sequence in self._next:
                if stop_token is None:
                    raise ValueError(
                        "a choice is the beginning of another one: name a token that ends it"
                    )
                self._next[sequence].append(stop_token)

    def allowed(self, taken: Sequence[int]) -> list[int]:
        """What may follow; nothing where a choice is complete."""
        return self._next.get(tuple(taken), [])
