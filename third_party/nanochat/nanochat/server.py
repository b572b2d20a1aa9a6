"""Chat over HTTP: a page, an address for conversations, and workers that answer.

    POST /chat/completions   {"messages": [{"role", "content"}, ...], and if wanted
                              "temperature", "top_k", "max_tokens"}
    GET  /, /logo.svg        the page
    GET  /health, /stats     whether there are workers, and which are busy

An answer comes as server-sent events, `data: {"token": "...", "gpu": 0}` for every piece of text
and `data: {"done": true}` at its end, or `data: {"error": "..."}` where it broke off. Whatever is
asked beyond the limits is refused with one sentence, `{"detail": "..."}`, before anything is done.

Each worker is a thread with an engine of its own, so the server answers others meanwhile. A client
that goes away ends its answer at the next token.
"""

import asyncio
import base64
import contextlib
import hashlib
import html
import ipaddress
import json
import re
import socket
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from nanochat.common import Refused
from nanochat.questions import Question, Sampling
from nanochat.workers import GRACE, Answer, Workers

MAX_BODY = 2**20
"""Bytes; whatever the other limits allow is shorter, even with every character escaped."""


class EventStream(Response):
    """Sends an answer while it is said, and abandons it when the client goes away."""

    media_type = "text/event-stream"

    def __init__(self, answer: Answer):
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        watch = asyncio.create_task(self._watch(receive))
        try:
            head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(head)
            while (event := await self.answer.next()) is not None:
                line = f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode()
                await send({"type": "http.response.body", "body": line, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            watch.cancel()
            self.answer.abandon()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.answer.abandon()


class Chat:
    """The addresses of the server.

    Args:
        workers: Who answers.
        defaults: How answers are drawn where a request does not say it.
        name: What the page calls the model.
        local: Whether only requests to this machine's own names are answered, so that no foreign
            name that was made to lead here can be used to talk to it.
        allow_origin: Another origin whose pages may ask; `*` is any.
    """

    def __init__(
        self,
        workers: Workers,
        defaults: Sampling,
        *,
        name: str = "",
        local: bool = True,
        allow_origin: str = "",
    ):
        self.workers, self.defaults = workers, defaults
        self.local, self.allow_origin = local, allow_origin
        self._page, self._policy = _page(name, defaults)
        self._logo = Path(__file__).with_name("logo.svg").read_bytes()

    def app(self) -> Starlette:
        """The application."""
        routes = [
            Route("/", self.page),
            Route("/logo.svg", self.logo),
            Route("/health", self.health),
            Route("/stats", self.stats),
            Route("/chat/completions", self.complete, methods=["POST"]),
        ]
        cors = Middleware(
            CORSMiddleware,
            allow_origins=[self.allow_origin],
            allow_methods=["GET", "POST"],
            allow_headers=["content-type"],
        )
        return Starlette(
            routes=routes,
            middleware=[cors] if self.allow_origin else [],
            exception_handlers={
                Refused: _refusal,
                HTTPException: _refusal,
                ClientDisconnect: _refusal,  # which nobody reads
            },
        )

    async def page(self, _: Request) -> Response:
        """The page, which loads nothing else."""
        headers = {"content-security-policy": self._policy, "cache-control": "no-cache"}
        return HTMLResponse(self._page, headers=headers)

    async def logo(self, _: Request) -> Response:
        """Its icon."""
        return Response(self._logo, media_type="image/svg+xml")

    async def health(self, _: Request) -> Response:
        """Whether questions are answered."""
        workers = self.workers
        return JSONResponse(
            {
                "status": "ok",
                "ready": not workers.stopping,
                "num_gpus": len(workers.engines),
                "available_workers": workers.available,
            }
        )

    async def stats(self, _: Request) -> Response:
        """Who is there to answer, and how many of them are at it."""
        engines, available = self.workers.engines, self.workers.available
        return JSONResponse(
            {
                "total_workers": len(engines),
                "available_workers": available,
                "busy_workers": len(engines) - available,
                "workers": [
                    {"gpu_id": place, "device": str(engine.model.get_device())}
                    for place, engine in enumerate(engines)
                ],
            }
        )

    async def complete(self, request: Request) -> Response:
        """An answer to a conversation, or why there is none."""
        self._check_sender(request)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise HTTPException(413, f"the request is longer than {MAX_BODY} bytes; shorten it")
        question = Question.read(body, self.defaults)
        tokens = await run_in_threadpool(self.workers.admit, question)
        if self.workers.stopping:
            raise HTTPException(503, "the server is being stopped; ask again later")
        answer = Answer(tokens, question.sampling)
        self.workers.ask(answer)
        return EventStream(answer)

    def _check_sender(self, request: Request) -> None:
        """Refuse pages of other origins: whoever opens one should not lend it this server."""
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if self.local and not is_local(_host_name(host)):
            raise HTTPException(
                403, "this server answers at 127.0.0.1 and localhost only; --host changes that"
            )
        allowed = (f"http://{host}", f"https://{host}", self.allow_origin)
        if origin is not None and origin not in allowed and self.allow_origin != "*":
            raise HTTPException(403, "pages of another origin may not ask this server")


def is_local(name: str) -> bool:
    """Whether a host's name or number leads to this machine only."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _host_name(host: str) -> str:
    """A Host header without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _refusal(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return JSONResponse({"detail": error.detail}, error.status_code, error.headers)
    return JSONResponse({"detail": str(error)}, 400)


def _page(name: str, defaults: Sampling) -> tuple[str, str]:
    """The page, and the policy under which it runs its own script and no other."""
    text = Path(__file__).with_name("ui.html").read_text()
    settings = json.dumps({"name": name, **asdict(defaults)})
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return text.replace("{{settings}}", html.escape(settings)), policy


def listen(host: str, port: int) -> socket.socket:
    """Take a port, 0 for a free one; who connects waits until the server runs.

    Raises:
        Refused: It cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "there is no such port"
        raise Refused(
            f"cannot listen at port {port} of {host} ({reason}); choose another --port or --host"
        ) from None


class Server(uvicorn.Server):
    """Serves a chat; when asked to end, by Ctrl-C or otherwise, it breaks answers off first."""

    def __init__(self, chat: Chat):
        super().__init__(
            uvicorn.Config(
                chat.app(),
                ws="none",
                lifespan="off",
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=GRACE,
            )
        )
        self.workers = chat.workers

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End."""
        self.workers.stop()
        await super().shutdown(sockets)


def serve(chat: Chat, listener: socket.socket) -> None:
    """Serve until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):  # which is how it is meant to end
        Server(chat).run(sockets=[listener])
    chat.workers.join()
