"""An answer while it is made: from what the worker tells to what a client hears."""

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import Response
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from tools.serve.protocol import ContinuationRequest, fault
from tools.serve.spelling import Spelling, places_in
from tools.serve.worker import Job, News
from train.asked import Asked, Prompt
from train.data.document import MEDIA
from train.text import Speaker


class RefusedError(Exception):
    """A request is not answered as it wants to be."""

    def __init__(self, status: int, message: str, *, code: str):
        super().__init__(message)
        self.status, self.code = status, code


class Answering:
    """The answer to one request, while it is made."""

    def __init__(
        self,
        wanted: ContinuationRequest,
        asked: Sequence[Asked],
        prompts: Sequence[Prompt],
        speaker: Speaker,
        spelling: Spelling,
    ):
        self._wanted, self._prompts = wanted, prompts
        self._given = [each.prompt for each in asked]
        self._speaker, self._spelling = speaker, spelling
        self._identity = f"{wanted.identity}-{secrets.token_hex(12)}"
        self._news: asyncio.Queue[tuple[int, News]] = asyncio.Queue()
        self._num_tokens = 0
        loop = asyncio.get_running_loop()

        def tell(index: int, news: News) -> None:
            # The loop may have ended, with whoever waited.
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._news.put_nowait, (index, news))

        self.jobs = [
            Job(
                asked=replace(each, prompt=prompt),
                num_tokens=len(prompt.tokens),
                tell=partial(tell, index),
                reads_along=bool(wanted.stream),
            )
            for index, (each, prompt) in enumerate(zip(asked, prompts, strict=True))
        ]

    async def whole(self, receive: Receive) -> Response:
        """All choices at once."""
        choices: dict[int, dict[str, Any]] = {}
        async for index, news in self._each(receive):
            if news.fault is not None:
                raise RefusedError(503, news.fault, code="server_error")
            choices[index] = self._choice(index, news, is_first=True)
        if len(choices) < len(self.jobs):
            return Response(status_code=499)  # nobody reads it
        ordered = [choices[index] for index in range(len(self.jobs))]
        return JSONResponse(self._wanted.answer(self._identity, ordered, self._usage()))

    async def events(self, receive: Receive) -> AsyncGenerator[dict[str, Any] | None]:
        """Choices as they come; None behind the last."""
        begun: set[int] = set()
        options = self._wanted.stream_options
        async for index, news in self._each(receive):
            if news.fault is not None:
                yield fault(news.fault, code="server_error", kind="server_error")
                return
            choice = self._choice(index, news, is_first=index not in begun)
            begun.add(index)
            yield self._wanted.answer(self._identity, [choice], None)
        if options is not None and options.include_usage:
            yield self._wanted.answer(self._identity, [], self._usage())
        yield None

    async def _each(self, receive: Receive) -> AsyncGenerator[tuple[int, News]]:
        """All news, until each answer has ended or one has failed, or the client has left."""
        gone = asyncio.ensure_future(_gone(receive))
        left = len(self.jobs)
        try:
            while left:
                coming = asyncio.ensure_future(self._news.get())
                await asyncio.wait({coming, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    coming.cancel()
                    return
                index, news = coming.result()
                left -= news.ending is not None
                yield index, news
                if news.fault is not None:
                    return
        finally:
            gone.cancel()
            # Rows that nobody waits for are free.
            for job in self.jobs:
                job.leave()

    def _choice(self, index: int, news: News, *, is_first: bool) -> dict[str, Any]:
        self._num_tokens += len(news.tokens)
        text, before = news.text, ""
        tokens, offsets = list(news.tokens), list(news.offsets)
        if self._wanted.echoes:
            before = self._echoed(index)
            offsets = [offset + len(before) for offset in offsets]
            if is_first:
                text = before + text
                tokens = [*news.echo, *tokens]
                offsets = [*self._offsets(news, before), *offsets]
        num_top = self._wanted.num_top
        told = None
        if num_top is not None:
            told = self._spelling.log_probabilities(tokens, offsets, num_top=num_top)
        return self._wanted.choice(
            index, text, ending=news.ending, log_probabilities=told, is_first=is_first
        )

    def _echoed(self, index: int) -> str:
        given = self._given[index]
        return given if isinstance(given, str) else self._speaker.text(self._prompts[index].tokens)

    def _offsets(self, news: News, shown: str) -> list[int]:
        words = self._speaker.words()
        for token in news.echo:
            words.add(token.id)
        words.finish()
        return places_in(shown, words.text, words.offsets)

    def _usage(self) -> dict[str, Any]:
        # Copies share a prompt.
        prompts = self._prompts[:: self._wanted.copies]
        read = sum(len(prompt.tokens) for prompt in prompts)
        told: dict[str, Any] = {
            "prompt_tokens": read,
            "completion_tokens": self._num_tokens,
            "total_tokens": read + self._num_tokens,
        }
        slots = [
            {"item": item.name, "modality": MEDIA[item.kind], "slots": item.stop - item.start}
            for prompt in prompts
            for item in prompt.items
        ]
        return told | {"item_slots": slots} if slots else told


class Events(Response):
    """An answer as server-sent events."""

    media_type = "text/event-stream"

    def __init__(self, answering: Answering):
        super().__init__(headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._answering = answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it piece by piece."""
        head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(head)
        async with contextlib.aclosing(self._answering.events(receive)) as events:
            async for event in events:
                told = "[DONE]" if event is None else json.dumps(event)
                body = f"data: {told}\n\n".encode()
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
