"""Decoded images go in batches to where a GPU answers them, and their answers come back later.

This is the decoding actor's side of the split graph. The actor goes on decoding while its batches are answered, and
waits only for the last of a shard. A server that is lost costs no image: its batches are asked of another one, and
where there is none, the actor answers them itself.

Nothing here knows Ray or TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipelines.errors import ModelRefused
from pipelines.images.preprocess import Prepared
from pipelines.models.runtime import Pixels, Vector

Pictures = npt.NDArray[np.uint8]
Answers = npt.NDArray[np.float32]


class Away(Exception):
    """A server does not answer: it is lost, it restarts, or it cannot compute."""


class Server(Protocol):
    """Answers batches."""

    @property
    def near(self) -> bool:
        """Whether it runs on this node, so that pixels need not travel."""

    def here(self) -> bool:
        """Whether it may be asked; never waits. One that was `Away` is here again once it has said so."""

    def ask(self, pictures: Pictures) -> Callable[[], Answers]:
        """Send a batch, uint8 `[n, S, S, 3]`.

        Returns:
            What waits for the answers, float32 `[n, K]`, or raises `Away`.

        Raises:
            Away: If it cannot even be sent.
        """


@dataclass(eq=False)
class Batch:
    """Some images on their way.

    Attributes:
        pictures: Their pixels, uint8 `[S, S, 3]` each; empty once they are answered.
        server: Where they are; None: nowhere.
        answer: What waits for the answers of that server.
        tried: The servers that were asked, none of them twice.
        answers: float32 `[n, K]`, NaN where there is no finite one; None before they are there.
        stood_in: Whether this actor answered them itself.
    """

    pictures: list[Pixels] = field(default_factory=list)
    server: Server | None = None
    answer: Callable[[], Answers] | None = None
    tried: list[Server] = field(default_factory=list)
    answers: Answers | None = None
    stood_in: bool = False


@dataclass(frozen=True)
class PromisedAnswer:
    """The answer of one image of a batch; a `Promise`."""

    kernel: BatchKernel
    batch: Batch
    place: int

    def __call__(self) -> np.ndarray:
        """float32 `[K]`, waited for.

        Raises:
            ModelRefused: If it is not finite.
        """
        answer: np.ndarray = self.kernel.answers_of(self.batch)[self.place]
        if not np.isfinite(answer).all():
            raise ModelRefused("The model answered a number that is not finite.")
        return answer

    @property
    def stood_in(self) -> bool:
        """Whether this actor answered it itself."""
        return self.batch.stood_in


class BatchKernel:
    """Promises answers: a kernel that collects images until a batch is full, and sends it.

    Args:
        servers: Who answers batches.
        stand_in: Loads what answers one image where no server does: uint8 `[S, S, 3]` to float32 `[K]`. It raises
            ModelRefused where the answer is not finite.
        size: Images in a full batch.
        in_flight: Batches under way before the oldest is waited for.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        stand_in: Callable[[], Callable[[Pixels], Vector]],
        size: int,
        in_flight: int,
    ) -> None:
        self._servers = servers
        self._load_stand_in = stand_in
        self._stand_in: Callable[[Pixels], Vector] | None = None
        self._size = size
        self._in_flight = in_flight
        self._open = Batch()
        self._sent: list[Batch] = []

    def __call__(self, prepared: Prepared) -> PromisedAnswer:
        """Take an image into the batch that is being filled; send it where it is full."""
        batch = self._open
        batch.pictures.append(prepared.pixels)
        promised = PromisedAnswer(self, batch, len(batch.pictures) - 1)
        if len(batch.pictures) == self._size:
            self._send()
        return promised

    def answers_of(self, batch: Batch) -> Answers:
        """Wait for a batch. The one that is being filled goes too: nothing more will come before it is wanted."""
        if self._open.pictures:
            self._send()
        while batch.answers is None:
            self._fetch()
        return batch.answers

    def _send(self) -> None:
        batch, self._open = self._open, Batch()
        while len(self._sent) >= self._in_flight:
            self._fetch()
        self._ask(batch)
        self._sent.append(batch)

    def _fetch(self) -> None:
        """Wait for the oldest batch under way, whoever answers it in the end."""
        batch = self._sent.pop(0)
        while batch.answers is None and batch.answer is not None:
            try:
                batch.answers = batch.answer()
            except Away:
                self._ask(batch)
        if batch.answers is None:
            batch.answers, batch.stood_in = self._answered_here(batch.pictures), True
        batch.pictures, batch.server, batch.answer = [], None, None

    def _ask(self, batch: Batch) -> None:
        """Send a batch to the server that is best to ask next; where there is none, it stays here."""
        while (server := self._next_server(batch)) is not None:
            batch.tried.append(server)
            try:
                batch.answer = server.ask(np.stack(batch.pictures))
            except Away:
                continue
            batch.server = server
            return
        batch.server, batch.answer = None, None

    def _next_server(self, batch: Batch) -> Server | None:
        """Of those that are here and were not asked: one of this node, and the one with least of ours under way."""
        able = [server for server in self._servers if server not in batch.tried and server.here()]
        busy = [sent.server for sent in self._sent]
        return min(able, key=lambda server: (not server.near, busy.count(server)), default=None)

    def _answered_here(self, pictures: Sequence[Pixels]) -> Answers:
        if self._stand_in is None:
            self._stand_in = self._load_stand_in()
        answers: list[Vector | None] = []
        for picture in pictures:
            try:
                answers.append(self._stand_in(picture))
            except ModelRefused:
                answers.append(None)
        length = next((len(answer) for answer in answers if answer is not None), 1)
        nothing = np.full(length, np.nan, np.float32)
        return np.stack([nothing if answer is None else answer for answer in answers])
