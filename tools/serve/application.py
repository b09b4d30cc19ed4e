"""The HTTP application: who may ask, how much, and what they hear when they may not."""

import asyncio
import contextlib
import hmac
import json
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from tools.serve.protocol import (
    CompletionRequest,
    Spelling,
    completion,
    fault,
    places_in,
    read_request,
)
from tools.serve.worker import BusyError, Job, News, Worker
from train.asked import Asked, Prompt
from train.errors import UserError
from train.text import Speaker

BODY_SECONDS: Final = 30.0
"""In which a request must have come."""
GRACE_SECONDS: Final = 5
"""How long answers may still take once the server is told to stop."""


class RefusedError(Exception):
    """A request is not answered as it wants to be."""

    def __init__(self, status: int, message: str, *, code: str):
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the server allows.

    Attributes:
        model: name of the model.
        adapters: names of adapters, each a model too.
        api_key: what clients must show; None lets all in.
        most_body_bytes: of a request.
    """

    model: str
    adapters: tuple[str, ...] = ()
    api_key: str | None
    most_body_bytes: int


def application(worker: Worker, rules: Rules) -> FastAPI:
    """The application, on a worker that was started."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    desk = _Desk(worker, rules)

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> Response:  # pyright: ignore[reportUnusedFunction]
        headers = {429: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}
        kind = "server_error" if error.status >= 500 else "invalid_request_error"
        return JSONResponse(
            fault(str(error), code=error.code, kind=kind),
            status_code=error.status,
            headers=headers.get(error.status),
        )

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> Response:  # pyright: ignore[reportUnusedFunction]
        told = f"{error.detail}: there are /v1/completions, /v1/models and /health"
        return JSONResponse(fault(told, code="not_found"), status_code=error.status_code)

    app.api_route("/health", methods=["GET", "HEAD"])(desk.health)
    app.get("/v1/models")(desk.models)
    app.get("/v1/models/{name:path}")(desk.model)
    app.post("/v1/completions")(desk.complete)
    return app


class _Desk:
    """Answers requests."""

    def __init__(self, worker: Worker, rules: Rules):
        self._worker, self._rules = worker, rules
        self._since = int(time.time())
        speaker: Speaker = worker.speaker
        self._speaker = speaker
        self._spelling = Spelling(speaker.text, speaker.tokenizer.id_to_token)

    async def health(self) -> Response:
        """Whether it computes, and for how many."""
        if not self._worker.is_alive:
            raise RefusedError(503, "the server is stopping", code="server_error")
        generated, waiting = self._worker.load
        return JSONResponse({"status": "ok", "generated": generated, "waiting": waiting})

    async def models(self, request: Request) -> Response:
        """What may be named in a request."""
        self._admit(request)
        names = (self._rules.model, *self._rules.adapters)
        return JSONResponse({"object": "list", "data": [self._card(name) for name in names]})

    async def model(self, request: Request, name: str) -> Response:
        """About a model."""
        self._admit(request)
        self._known(name)
        return JSONResponse(self._card(name))

    def _card(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._since,
            "owned_by": "semicausal",
            "max_model_len": self._speaker.config.decoder.max_tokens,
            "parent": None if name == self._rules.model else self._rules.model,
        }

    def _admit(self, request: Request) -> None:
        key = self._rules.api_key
        shown = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if key is not None and not hmac.compare_digest(shown, key.encode()):
            raise RefusedError(
                401, "the API key is missing or wrong: send it as a bearer token", code="api_key"
            )

    def _known(self, name: str) -> None:
        known = (self._rules.model, *self._rules.adapters)
        if name not in known:
            shown = name if len(name) <= 80 else f"{name[:80]}…"
            told = f"model: there is no {shown!r}; there is {', '.join(map(repr, known))}"
            raise RefusedError(404, told, code="model_not_found")

    async def complete(self, request: Request) -> Response:
        """Continue prompts."""
        self._admit(request)
        body = await self._body(request)
        try:
            wanted = read_request(body)
            self._known(wanted.model)
            adapter = None if wanted.model == self._rules.model else wanted.model
            asked = [replace(each, adapter=adapter) for each in wanted.asked()]
            # Megabytes take seconds, in which the others must be answered.
            prompts = await asyncio.to_thread(self._prompts, asked, has_most=wanted.has_most)
        except UserError as error:
            raise RefusedError(400, str(error), code="invalid_request") from None
        answering = _Answering(wanted, asked, prompts, self._speaker, self._spelling)
        try:
            self._worker.submit(answering.jobs)
        except BusyError:
            raise RefusedError(
                429, "too many requests are waiting: try again later", code="busy"
            ) from None
        return _Events(answering) if wanted.stream else await answering.whole(request.receive)

    def _prompts(self, asked: Sequence[Asked], *, has_most: bool) -> list[Prompt]:
        """The prompts in tokens, so that what cannot be read is refused at once.

        Args:
            asked: with prompts as they were sent.
            has_most: whether the client says how much is to be generated; else it is what has room.
        """
        known: dict[int, Prompt] = {}  # copies share one
        found: list[Prompt] = []
        room = self._speaker.config.decoder.max_tokens
        for each in asked:
            key = id(each.prompt)
            if key not in known:
                known[key] = self._speaker.prompt(each.prompt)
            read = known[key]
            if has_most and len(read.tokens) + each.max_new_tokens > room + 1:
                raise UserError(
                    f"max_tokens: the prompt's {len(read.tokens)} tokens and {each.max_new_tokens} "
                    f"more exceed the {room + 1} that the model has positions for: ask for at most "
                    f"{room + 1 - len(read.tokens)}"
                )
            found.append(read)
        return found

    async def _body(self, request: Request) -> bytes:
        most = self._rules.most_body_bytes
        too_large = RefusedError(
            413,
            f"the request is larger than {most} bytes: ask for less at a time",
            code="too_large",
        )
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for piece in request.stream():
                    body += piece
                    if len(body) > most:
                        raise too_large
        except ClientDisconnect:
            raise RefusedError(400, "the request did not come whole", code="cut_off") from None
        except TimeoutError:
            raise RefusedError(
                408, f"the request did not come within {BODY_SECONDS:g} s", code="timeout"
            ) from None
        return bytes(body)


class _Answering:
    """The answer to one request, while it is made."""

    def __init__(
        self,
        wanted: CompletionRequest,
        asked: Sequence[Asked],
        prompts: Sequence[Prompt],
        speaker: Speaker,
        spelling: Spelling,
    ):
        self._wanted, self._prompts = wanted, prompts
        self._given = [each.prompt for each in asked]
        self._speaker, self._spelling = speaker, spelling
        self._identity = f"cmpl-{secrets.token_hex(12)}"
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
        told = completion(self._identity, self._wanted.model, ordered, self._usage())
        return JSONResponse(told)

    async def events(self, receive: Receive) -> AsyncGenerator[dict[str, Any] | None]:
        """Choices as they come; None behind the last."""
        begun: set[int] = set()
        options, model = self._wanted.stream_options, self._wanted.model
        async for index, news in self._each(receive):
            if news.fault is not None:
                yield fault(news.fault, code="server_error", kind="server_error")
                return
            choice = self._choice(index, news, is_first=index not in begun)
            begun.add(index)
            yield completion(self._identity, model, [choice], None)
        if options is not None and options.include_usage:
            yield completion(self._identity, model, [], self._usage())
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
        if self._wanted.echo:
            before = self._echoed(index)
            offsets = [offset + len(before) for offset in offsets]
            if is_first:
                text = before + text
                tokens = [*news.echo, *tokens]
                offsets = [*self._offsets(news, before), *offsets]
        num_top = self._wanted.logprobs
        return {
            "text": text,
            "index": index,
            "logprobs": None
            if num_top is None
            else self._spelling.log_probabilities(tokens, offsets, num_top=num_top),
            "finish_reason": news.ending,
        }

    def _echoed(self, index: int) -> str:
        given = self._given[index]
        return given if isinstance(given, str) else self._speaker.text(self._prompts[index].tokens)

    def _offsets(self, news: News, shown: str) -> list[int]:
        words = self._speaker.words()
        for token in news.echo:
            words.add(token.id)
        words.finish()
        return places_in(shown, words.text, words.offsets)

    def _usage(self) -> dict[str, int]:
        # Copies share a prompt.
        read = sum(len(prompt.tokens) for prompt in self._prompts[:: self._wanted.copies])
        return {
            "prompt_tokens": read,
            "completion_tokens": self._num_tokens,
            "total_tokens": read + self._num_tokens,
        }


class _Events(Response):
    """An answer as server-sent events."""

    media_type = "text/event-stream"

    def __init__(self, answering: _Answering):
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


def server_of(served: FastAPI) -> uvicorn.Server:
    """Uvicorn's server of an application; it logs through whatever handlers there are."""
    return uvicorn.Server(
        uvicorn.Config(
            served,
            # Its own would close the handlers of all other libraries, and what these write to.
            log_config=None,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
            lifespan="off",
            server_header=False,
        )
    )
