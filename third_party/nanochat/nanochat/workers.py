"""Threads that answer questions of the chat server, and what they say on its way to its clients."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Sequence
from dataclasses import asdict
from queue import SimpleQueue
from threading import Thread
from typing import Any

from nanochat.common import Refused
from nanochat.engine import Engine, TextStream
from nanochat.questions import Question, Sampling

GRACE = 10
"""Seconds after which a server that was asked to end does not wait for its clients any more."""

Event = dict[str, Any]

log = logging.getLogger(__name__)


class Answer:
    """What a worker says to one question, handed from its thread to the event loop."""

    def __init__(self, tokens: list[int], sampling: Sampling):
        self.tokens, self.sampling = tokens, sampling
        self.abandoned = False
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()

    def put(self, event: Event | None) -> None:
        """Say something, from any thread; None is the end."""
        with contextlib.suppress(RuntimeError):  # the loop has ended and nobody listens
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self) -> Event | None:
        """What is said next; None when all has been said."""
        return await self._events.get()

    def abandon(self) -> None:
        """Nobody wants to hear the rest."""
        self.abandoned = True
        self.put(None)


class Workers:
    """Threads that answer questions, first come first served, each with its own engine."""

    def __init__(self, engines: Sequence[Engine]):
        self.engines = list(engines)
        self.busy: set[int] = set()
        self.answered = 0
        self.stopping = False
        self._waiting: SimpleQueue[Answer | None] = SimpleQueue()
        self._threads = [
            Thread(target=self._work, args=(place,), name=f"replica-{place}", daemon=True)
            for place in range(len(self.engines))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def available(self) -> int:
        """How many have nothing to do."""
        return len(self.engines) - len(self.busy)

    def admit(self, question: Question) -> list[int]:
        """The tokens of a question.

        Raises:
            Refused: They are more than the context of the model.
        """
        engine = self.engines[0]
        tokens = question.prompt(engine.tokenizer)
        context = engine.model.config.sequence_len
        if len(tokens) > context:
            raise Refused(
                f"the conversation has {len(tokens)} tokens and the context of the model "
                f"{context}; shorten it or begin a new one"
            )
        return tokens

    def ask(self, answer: Answer) -> None:
        """Put a question at the end of the queue."""
        self._waiting.put(answer)

    def stop(self) -> None:
        """Break off what is being said, and answer nothing more."""
        self.stopping = True
        for _ in self._threads:
            self._waiting.put(None)

    def join(self) -> None:
        """Wait until the threads have ended."""
        for thread in self._threads:
            thread.join(GRACE)

    def _work(self, place: int) -> None:
        while (answer := self._waiting.get()) is not None:
            self.busy.add(place)
            try:
                last = self._speak(place, answer)
            except Exception:  # whatever a model dies of, the next question is another one
                log.exception("an answer broke off")
                last = {"error": "the answer broke off; the server's log says why"}
            self.answered += last == {"done": True}
            self.busy.discard(place)
            answer.put(last)
            answer.put(None)

    def _speak(self, place: int, answer: Answer) -> Event:
        """Put an answer's text, whole characters only; its last event."""
        engine = self.engines[place]
        special = engine.tokenizer.encode_special
        ends = (special("<|assistant_end|>"), special("<|bos|>"))
        broken = {"error": "the server was stopped"}
        if self.stopping or answer.abandoned:
            return broken
        stream = TextStream(engine.tokenizer)
        seed = secrets.randbits(31)
        for column, _ in engine.generate(answer.tokens, seed=seed, **asdict(answer.sampling)):
            if self.stopping or answer.abandoned:
                return broken
            if column[0] in ends:
                break
            if text := stream.push(column[0]):
                answer.put({"token": text, "gpu": place})
        if text := stream.rest():
            answer.put({"token": text, "gpu": place})
        return {"done": True}
