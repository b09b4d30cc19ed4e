"""The HTTP application: who may ask, how much, and what they hear when they may not."""

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from tools.serve.answering import Answering, Events, RefusedError
from tools.serve.chat import ChatRequest
from tools.serve.items import GivenItems
from tools.serve.protocol import CompletionRequest, ContinuationRequest, fault, read_request
from tools.serve.spelling import Spelling
from tools.serve.worker import BusyError, Worker
from train.asked import Asked, Prompt, item_vectors, text_modality
from train.data.document import MEDIA
from train.errors import UserError
from train.items import Bounds
from train.text import Speaker

BODY_SECONDS: Final = 30.0
"""In which a request must have come."""
MOST_DECODED: Final = 2
"""Requests whose items are read at a time."""
MOST_UNDECODED: Final = 16
"""Requests that may wait for that, each with all bytes of its items."""
GRACE_SECONDS: Final = 5
"""How long answers may still take once the server is told to stop."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the server allows.

    Attributes:
        model: name of the model.
        adapters: names of adapters, each a model too.
        api_key: what clients must show; None lets all in.
        most_body_bytes: of a request.
        most_items: that the prompts of a request may show.
        bounds: of each of them.
    """

    model: str
    adapters: tuple[str, ...] = ()
    api_key: str | None
    most_body_bytes: int
    most_items: int = 32
    bounds: Bounds = field(default_factory=Bounds)


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
        told = (
            f"{error.detail}: there are /v1/chat/completions, /v1/completions, /v1/models and "
            "/health"
        )
        return JSONResponse(fault(told, code="not_found"), status_code=error.status_code)

    app.api_route("/health", methods=["GET", "HEAD"])(desk.health)
    app.get("/v1/models")(desk.models)
    app.get("/v1/models/{name:path}")(desk.model)
    app.post("/v1/completions")(desk.complete)
    app.post("/v1/chat/completions")(desk.chat)
    return app


class _Desk:
    """Answers requests."""

    def __init__(self, worker: Worker, rules: Rules):
        self._worker, self._rules = worker, rules
        self._since = int(time.time())
        speaker: Speaker = worker.speaker
        self._speaker = speaker
        self._spelling = Spelling(speaker.text, speaker.tokenizer.id_to_token)
        self._modality = text_modality(speaker.config)
        self._media = [MEDIA[kind] for kind in item_vectors(speaker.config)]
        self._decoders = asyncio.Semaphore(MOST_DECODED)
        self._undecoded = 0

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
            "input_modalities": ["text", *self._media],
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
        return await self._answer(request, CompletionRequest)

    async def chat(self, request: Request) -> Response:
        """Continue a conversation."""
        return await self._answer(request, ChatRequest)

    async def _answer(self, request: Request, kind: type[ContinuationRequest]) -> Response:
        self._admit(request)
        try:
            wanted, asked, prompts = await self._read(await self._body(request), kind)
        except UserError as error:
            raise RefusedError(400, str(error), code="invalid_request") from None
        answering = Answering(wanted, asked, prompts, self._speaker, self._spelling)
        try:
            self._worker.submit(answering.jobs)
        except BusyError:
            raise _busy() from None
        return Events(answering) if wanted.stream else await answering.whole(request.receive)

    async def _read(
        self, body: bytes, kind: type[ContinuationRequest]
    ) -> tuple[ContinuationRequest, list[Asked], list[Prompt]]:
        """What is wanted, without the files of its items, of which many requests may wait."""
        # Megabytes take seconds, in which the others must be answered.
        wanted, asked, items = await asyncio.to_thread(self._wanted, body, kind)
        del body  # its items are in `wanted`, too
        # Pictures of many pixels take memory while they are read.
        async with self._decoder() if len(items) else contextlib.nullcontext():
            prompts = await asyncio.to_thread(self._prompts, wanted, asked, items)
        return wanted.without_items(), asked, prompts

    def _wanted(
        self, body: bytes, kind: type[ContinuationRequest]
    ) -> tuple[ContinuationRequest, list[Asked], GivenItems]:
        wanted = read_request(body, kind)
        self._known(wanted.model)
        adapter = None if wanted.model == self._rules.model else wanted.model
        asked = [replace(each, adapter=adapter) for each in wanted.asked(self._modality)]
        return wanted, asked, wanted.given(self._rules.bounds, most=self._rules.most_items)

    @contextlib.asynccontextmanager
    async def _decoder(self) -> AsyncGenerator[None]:
        """One of those who may read items, once it is free.

        Raises:
            RefusedError: too many wait for one.
        """
        if self._undecoded >= MOST_DECODED + MOST_UNDECODED:
            raise _busy()
        self._undecoded += 1
        try:
            async with self._decoders:
                yield
        finally:
            self._undecoded -= 1

    def _prompts(
        self, wanted: ContinuationRequest, asked: Sequence[Asked], items: GivenItems
    ) -> list[Prompt]:
        """The prompts in slots, their items read, so that what cannot be is refused at once.

        Args:
            wanted: says how much is to be generated; else it is what has room.
            asked: with prompts as they were sent.
            items: that they may name.
        """
        known: dict[int, Prompt] = {}  # copies share one
        found: list[Prompt] = []
        room = self._speaker.config.decoder.max_tokens
        for each in asked:
            key = id(each.prompt)
            if key not in known:
                known[key] = self._speaker.prompt(each.prompt, items=items)
            read = known[key]
            if wanted.must_have_room and len(read.tokens) + each.max_new_tokens > room + 1:
                raise UserError(
                    f"max_tokens: the prompt's {len(read.tokens)} tokens and {each.max_new_tokens} "
                    f"more exceed the {room + 1} that the model has positions for: ask for at most "
                    f"{room + 1 - len(read.tokens)}"
                )
            found.append(read)
        items.require_used()
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


def _busy() -> RefusedError:
    return RefusedError(429, "too many requests are waiting: try again later", code="busy")


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
