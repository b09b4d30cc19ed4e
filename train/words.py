"""Text of tokens as they come, as far as it is certain, and where a stop string ends it."""

from collections.abc import Callable, Sequence


class Words:
    """Text of a row's tokens, which grows with each.

    A token may hold a part of a character, whose rest comes with the next.

    Args:
        decode: text of some tokens.
        paragraph: token that ends a paragraph, which a blank line shows.
        stop: each ends the text before it.

    Attributes:
        text: what is certain so far.
        offsets: where the text of each token begins.
        is_stopped: whether a stop string has come.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        *,
        paragraph: int,
        stop: Sequence[str] = (),
    ):
        self.text = ""
        self.offsets: list[int] = []
        self.is_stopped = False
        self._decode = decode
        self._paragraph = paragraph
        self._stop = [string for string in stop if string]
        self._line: list[int] = []
        # Tokens of the line before which no text depends on what is to come, and those whose text
        # is told.
        self._settled = self._told = 0

    def add(self, token: int) -> None:
        """The next token."""
        self.offsets.append(len(self.text))
        if token == self._paragraph:
            self.finish()
            self._append("\n\n")
            self._line, self._settled, self._told = [], 0, 0
            return
        self._line.append(token)
        whole = self._decode(self._line[self._settled :])
        told = self._decode(self._line[self._settled : self._told])
        if len(whole) > len(told) and not whole.endswith("\ufffd"):
            self._settled, self._told = self._told, len(self._line)
            self._append(whole[len(told) :])

    def finish(self) -> None:
        """No token follows: a character that is not whole is told as it is."""
        whole = self._decode(self._line[self._settled :])
        told = self._decode(self._line[self._settled : self._told])
        self._settled = self._told = len(self._line)
        self._append(whole[len(told) :])

    @property
    def sure(self) -> int:
        """How much of the text no stop string can take away any more."""
        if self.is_stopped:
            return len(self.text)
        most = max(map(len, self._stop), default=1) - 1
        for length in range(min(most, len(self.text)), 0, -1):
            tail = self.text[-length:]
            if any(string.startswith(tail) for string in self._stop):
                return len(self.text) - length
        return len(self.text)

    def _append(self, text: str) -> None:
        if self.is_stopped:
            return
        before = len(self.text)
        self.text += text
        found = [
            (at + len(string), at)
            for string in self._stop
            if (at := self.text.find(string, max(0, before - len(string) + 1))) >= 0
        ]
        if found:
            # The one that is whole first, as if characters came one by one.
            _, at = min(found)
            self.text, self.is_stopped = self.text[:at], True
