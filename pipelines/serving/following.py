"""A REF without version follows its champion: a promotion is loaded, tested and swapped in while requests go on."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Protocol, TypeVar, cast

from pipelines.errors import NightreadError, TryLater
from pipelines.models.bundle import BUNDLE_FILE
from pipelines.models.registry import follows_champion, locate
from pipelines.serving.served_model import LoadedModel, load_model
from pipelines.storage import files
from pipelines.storage.paths import join, name

# A promotion answers within a minute: looking, reading and testing together.
LOOK_SECONDS = 15.0
# Between attempts at one and the same version that cannot be loaded.
FIRST_PAUSE, LONGEST_PAUSE = 60.0, 3600.0

Result = TypeVar("Result")


class Serving(Protocol):
    """What answers: the pool."""

    promotion_failed: str | None

    async def serve(self, model: LoadedModel) -> None:
        """Load a model, test it and let it take over."""


class Following:
    """Keeps what answers on the model that a REF means.

    Args:
        ref: A bundle's folder, MODELS/NAME or MODELS/NAME@VERSION; only MODELS/NAME is followed.
        precision: `float32` or `int8`.
        serving: What answers.
        tell: Gets a sentence when something happens that an operator wants to know.
        clock: Seconds that only go forward.
    """

    def __init__(
        self,
        ref: str,
        precision: str,
        serving: Serving,
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ref = ref
        self._precision = precision
        self._serving = serving
        self._tell = tell
        self._clock = clock
        self._follows = False
        self._uri = ""
        self._failed_uri = ""
        self._pause = FIRST_PAUSE
        self._next_try = 0.0
        self._away = False
        self._asked = asyncio.Event()

    async def load_first(self) -> None:
        """Load what the REF means now and let it answer.

        Raises:
            ModelRefused, UsageError, TryLater: If that cannot be.
        """
        model = await _aside(load_model, self._ref, self._precision)
        self._follows = await _aside(follows_champion, self._ref)
        await self._serving.serve(model)
        self._uri = model.uri

    def look_now(self) -> None:
        """Have the champion looked at without delay, and one that failed tried again: what SIGHUP asks for."""
        self._asked.set()

    async def follow(self) -> None:
        """Look after the champion until cancelled; returns at once for a REF that means one version only."""
        while self._follows:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._asked.wait()
            asked = self._asked.is_set()
            self._asked.clear()
            try:
                await self.look(asked)
            except Exception as defect:  # whatever it is, the model that is loaded goes on
                self._failed("", f"The champion of {name(self._ref)} was not looked at: {type(defect).__name__}.")

    async def look(self, at_once: bool = False) -> None:
        """Look once, and swap where the champion is another.

        Args:
            at_once: Try even what failed a moment ago.
        """
        try:
            uri = await _aside(locate, self._ref)
        except TryLater as error:
            self._storage_is_away(error)
            return
        except NightreadError as error:
            if await _aside(self._own_bundle_is_there):
                self._failed("", f"The champion of {name(self._ref)} cannot be told: {error.message}")
            else:
                self._storage_is_away(error)
            return
        self._away = False
        if uri == self._uri:
            self._serving.promotion_failed, self._failed_uri, self._pause = None, "", FIRST_PAUSE
        elif uri != self._failed_uri or at_once or self._clock() >= self._next_try:
            await self._swap(uri)

    async def _swap(self, uri: str) -> None:
        if uri != self._failed_uri:
            self._pause = FIRST_PAUSE
        try:
            model = await _aside(load_model, self._ref, self._precision)
        except TryLater as error:
            self._storage_is_away(error)
            return
        except NightreadError as error:
            self._failed(uri, f"The new champion {name(uri)} cannot be loaded: {error.message}")
            return
        try:
            await self._serving.serve(model)
        except NightreadError as error:
            self._failed(uri, f"The new champion {name(uri)} cannot answer: {error.message}")
            return
        self._uri, self._failed_uri, self._pause = model.uri, "", FIRST_PAUSE
        self._serving.promotion_failed = None
        self._tell(f"{model.served.name}@{model.served.version} was promoted and answers from now on.")

    def _failed(self, uri: str, sentence: str) -> None:
        """Leave the old model serving, and try this one again after longer and longer pauses."""
        if sentence != self._serving.promotion_failed:
            self._tell(f"{sentence} The model before goes on.")
        self._serving.promotion_failed = sentence
        self._failed_uri = uri
        self._next_try = self._clock() + self._pause
        self._pause = min(self._pause * 2, LONGEST_PAUSE)

    def _storage_is_away(self, error: NightreadError) -> None:
        """No fault of a model: said once, and looked at again as usual."""
        if not self._away:
            self._tell(
                f"The place of the models does not answer, and the model that is loaded goes on: {error.message}"
            )
        self._away = True

    def _own_bundle_is_there(self) -> bool:
        # A share that is not mounted looks like one without models.
        try:
            return files.exists(join(self._uri, BUNDLE_FILE))
        except NightreadError:
            return False


async def _aside(work: Callable[..., Result], *arguments: str) -> Result:
    """Do some work in a thread that the end of this process does not wait for: storage may hang."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def tell(result: Result | None, error: Exception | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast(Result, result))

    def run() -> None:
        try:
            outcome: tuple[Result | None, Exception | None] = (work(*arguments), None)
        except Exception as error:
            outcome = (None, error)
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, *outcome)

    threading.Thread(target=run, daemon=True, name="models").start()
    return await done
