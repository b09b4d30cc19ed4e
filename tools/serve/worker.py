"""The thread that computes: answers to all who ask at a time advance together, token by token."""

import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from model.generation.picking import Ending, Token
from train.asked import Asked
from train.errors import UserError
from train.text import Answer, Speaker, Speech

MOST_ADMITTED_SLOTS = 8192
"""Of prompts that are read at a time, each as long as the longest, so that those who wait for their
next token wait briefly."""


class BusyError(Exception):
    """More is waiting than is allowed."""


@dataclass(frozen=True, kw_only=True)
class News:
    """What is new of an answer; all of it at once where nobody reads along.

    Attributes:
        text: behind what was told.
        tokens: behind those that were told.
        offsets: where the text of each begins in the answer.
        echo: the prompt's tokens, with the first news, where they are asked for.
        ending: None as long as it goes on.
        fault: why there will be no more.
    """

    text: str = ""
    tokens: tuple[Token, ...] = ()
    offsets: tuple[int, ...] = ()
    echo: tuple[Token, ...] = ()
    ending: Ending | None = None
    fault: str | None = None


@dataclass(eq=False)
class Job:
    """One continuation that somebody waits for.

    Attributes:
        asked: what is asked.
        num_tokens: of the prompt.
        tell: takes news; called by the worker's thread.
        reads_along: whether news are wanted while it is generated.
        is_left: whether nobody waits any more.
    """

    asked: Asked
    num_tokens: int
    tell: Callable[[News], None]
    reads_along: bool
    is_left: bool = False
    answer: Answer | None = None
    _told: int = field(default=0, init=False)
    _told_tokens: int = field(default=0, init=False)

    def leave(self) -> None:
        """Nobody waits for it any more; its row is free with the next token."""
        self.is_left = True

    def report(self) -> None:
        """Tell what is new, if it is to be told now."""
        answer = self.answer
        assert answer is not None
        if self.is_left or (answer.ending is None and not self.reads_along):
            return
        text, tokens = answer.text, answer.tokens
        stop = len(tokens)
        if answer.ending is None:
            # A token whose text is not certain is told with it.
            offsets = answer.words.offsets
            stop = sum(offset < len(text) for offset in offsets[:stop])
        if answer.ending is None and len(text) == self._told:
            return
        first, stop = self._told_tokens, max(stop, self._told_tokens)
        self.tell(
            News(
                text=text[self._told :],
                tokens=tuple(tokens[first:stop]),
                offsets=tuple(answer.words.offsets[first:stop]),
                echo=() if self._told or first else tuple(answer.row.echo),
                ending=answer.ending,
            )
        )
        self._told, self._told_tokens = len(text), stop


class Worker:
    """Computes for all who ask, in a thread of its own.

    Args:
        speaker: whose model is used by nobody else.
        most_rows: continuations that are generated at a time.
        most_waiting: those that may wait for a row.
    """

    def __init__(self, speaker: Speaker, *, most_rows: int, most_waiting: int):
        self.speaker = speaker
        self._most_rows, self._most_waiting = most_rows, most_waiting
        self._waiting: deque[Job] = deque()
        self._going_on: list[Job] = []
        self._changed = threading.Condition()
        self._stops = False
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    def stop(self) -> None:
        """Compute no more, and wait until that is so; who still waits is told."""
        with self._changed:
            self._stops = True
            self._changed.notify()
        self._thread.join()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Have continuations generated, all or none of them.

        Raises:
            BusyError: too many are waiting already.
        """
        with self._changed:
            free = self._most_rows - len(self._going_on)
            if any(job.is_left for job in self._waiting):
                # Who has left takes no place, though no row has become free.
                self._waiting = deque(job for job in self._waiting if not job.is_left)
            if len(self._waiting) + len(jobs) > self._most_waiting + max(0, free):
                raise BusyError
            self._waiting.extend(jobs)
            self._changed.notify()

    @property
    def load(self) -> tuple[int, int]:
        """Continuations that are generated, and that wait."""
        return len(self._going_on), len(self._waiting)

    @property
    def is_alive(self) -> bool:
        """Whether it computes what it is asked."""
        return self._thread.is_alive() and not self._stops

    def _run(self) -> None:
        speech = Speech(self.speaker)
        while True:
            with self._changed:
                while not (self._stops or self._waiting or self._going_on):
                    self._changed.wait()
                if self._stops:
                    break
                admitted = self._next()
            try:
                self._advance(speech, admitted)
            except UserError as error:  # the model is not finite
                self._fail(str(error))
                speech = Speech(self.speaker)
            except Exception as error:
                # Of what failed alone: its arguments may hold what was asked.
                sys.stderr.write("".join(traceback.format_tb(error.__traceback__)))
                sys.stderr.write(f"the worker failed: {type(error).__name__}\n")
                self._fail(f"the server failed ({type(error).__name__})")
                speech = Speech(self.speaker)
        self._fail("the server is stopping")

    def _next(self) -> list[Job]:
        """Those that get a row now, in the order in which they came."""
        free, longest = self._most_rows - len(self._going_on), 0
        admitted: list[Job] = []
        while self._waiting and len(admitted) < free:
            job = self._waiting[0]
            if not job.is_left:
                longest = max(longest, job.num_tokens)
                if admitted and (len(admitted) + 1) * longest > MOST_ADMITTED_SLOTS:
                    break
                admitted.append(job)
            self._waiting.popleft()
        self._going_on += admitted
        return admitted

    def _advance(self, speech: Speech, admitted: Sequence[Job]) -> None:
        """The first token of new continuations, the next one of the others."""
        # Looked at once: they may leave at any time.
        left = [job for job in self._going_on if job.is_left]
        for job in left:
            if job.answer is not None:
                speech.drop(job.answer)
        with self._changed:
            self._going_on = [job for job in self._going_on if job not in left]
        speech.step()
        admitted = [job for job in admitted if job not in left]
        if admitted:
            answers = speech.admit([job.asked for job in admitted])
            for job, answer in zip(admitted, answers, strict=True):
                job.answer = answer
        for job in self._going_on:
            job.report()
        with self._changed:
            self._going_on = [
                job for job in self._going_on if job.answer is None or job.answer.ending is None
            ]

    def _fail(self, fault: str) -> None:
        with self._changed:
            lost = [*self._going_on, *self._waiting] if self._stops else list(self._going_on)
            if self._stops:
                self._waiting.clear()
            self._going_on = []
        for job in lost:
            if not job.is_left:
                job.tell(News(fault=fault))
