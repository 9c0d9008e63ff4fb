"""Images answered in batches: by servers that come and go, and by the actor itself where none is there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import ModelRefused
from pipelines.images.preprocess import Prepared
from pipelines.scoring.batches import Answers, Away, BatchKernel, Pictures
from pipelines.scoring.kernels import fulfilled
from pipelines.scoring.rows import Outcome

SIDE = 4


def truth(picture: np.ndarray) -> np.ndarray:
    """What every server and the stand-in answer to a picture."""
    return np.array([picture.astype(np.float64).mean(), float(picture[0, 0, 0])], np.float32)


def image(number: int) -> Prepared:
    pixels = np.random.default_rng(number).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    return Prepared(
        pixels=pixels, width=SIDE, height=SIDE, mean_intensity=0.5, content_sha256=digest, decoder="none", frames=1
    )


class LossyServer:
    """Answers batches but for those of its calls that are to be lost; then it is away for some questions."""

    def __init__(self, lost: set[int] = frozenset(), away_for: int = 0, near: bool = False) -> None:  # type: ignore[assignment]
        self.near = near
        self.sizes: list[int] = []
        self.most_waiting = 0
        self._waiting = 0
        self._lost, self._away_for, self._away = lost, away_for, 0

    def here(self) -> bool:
        self._away = max(0, self._away - 1)
        return self._away == 0

    def ask(self, pictures: Pictures) -> Callable[[], Answers]:
        number = len(self.sizes)
        self.sizes.append(len(pictures))
        self._waiting += 1
        self.most_waiting = max(self.most_waiting, self._waiting)
        kept = pictures.copy()

        def answer() -> Answers:
            self._waiting -= 1
            if number in self._lost:
                self._away = self._away_for
                raise Away
            return np.stack([truth(picture) for picture in kept])

        return answer


def kernel_of(servers: list[LossyServer], size: int = 4, in_flight: int = 2) -> BatchKernel:
    return BatchKernel(servers, lambda: truth, size, in_flight)


@given(
    shards=st.lists(st.integers(0, 11), min_size=1, max_size=6),
    size=st.integers(1, 5),
    in_flight=st.integers(1, 3),
    lost=st.lists(st.sets(st.integers(0, 12)), min_size=0, max_size=3),
    away_for=st.integers(0, 6),
)
def test_each_image_gets_its_own_answer_whatever_is_lost(
    shards: list[int], size: int, in_flight: int, lost: list[set[int]], away_for: int
) -> None:
    servers = [LossyServer(calls, away_for) for calls in lost]
    kernel = kernel_of(servers, size, in_flight)
    first = 0
    for count in shards:
        images = [image(number) for number in range(first, first + count)]
        first += count
        outcomes = [Outcome("v", one, promise=kernel(one)) for one in images]
        for one, outcome in zip(images, outcomes, strict=True):
            answered = fulfilled(outcome)
            assert answered.answer is not None and answered.promise is None
            np.testing.assert_array_equal(answered.answer, truth(one.pixels))
            if not any(lost):
                assert answered.stood_in == (not servers)
    assert all(server.most_waiting <= in_flight for server in servers)
    assert all(0 < sent <= size for server in servers for sent in server.sizes)


def test_full_batches_are_sent_while_others_are_still_decoded() -> None:
    server = LossyServer()
    kernel = kernel_of([server])
    promises = [kernel(image(number)) for number in range(6)]
    assert server.sizes == [4]
    np.testing.assert_array_equal(promises[0](), truth(image(0).pixels))
    assert server.sizes == [4, 2], "the rest of the shard goes before anything is waited for"
    np.testing.assert_array_equal(promises[5](), truth(image(5).pixels))


def test_pixels_stay_on_their_node_and_are_shared_out_there() -> None:
    far, near, other = LossyServer(), LossyServer(near=True), LossyServer(near=True)
    kernel = kernel_of([far, near, other], size=1, in_flight=4)
    for number in range(4):
        kernel(image(number))
    assert (far.sizes, near.sizes, other.sizes) == ([], [1, 1], [1, 1])


def test_a_lost_batch_goes_to_another_node_before_the_actor_answers_it_itself() -> None:
    near, far = LossyServer({0}, near=True), LossyServer()
    promised = kernel_of([near, far])(image(1))
    np.testing.assert_array_equal(promised(), truth(image(1).pixels))
    assert (near.sizes, far.sizes, promised.stood_in) == ([1], [1], False)


def test_a_server_that_is_away_is_not_asked_until_it_is_back() -> None:
    server = LossyServer({0}, away_for=3)
    kernel = kernel_of([server], size=1, in_flight=1)
    seen = []
    for number in range(5):
        promised = kernel(image(number))
        promised()
        seen.append(promised.stood_in)
    assert seen == [True, True, True, False, False]
    assert server.sizes == [1, 1, 1]


def test_no_finite_answer_fails_the_one_image() -> None:
    class Broken(LossyServer):
        def ask(self, pictures: Pictures) -> Callable[[], Answers]:
            return lambda: np.array([[0.5, 0.5], [np.nan, 0.5]], np.float32)

    kernel = kernel_of([Broken()])
    outcomes = [fulfilled(Outcome("v", image(n), seconds=0.5, promise=kernel(image(n)))) for n in range(1)]
    assert outcomes[0].answer is not None
    kernel = kernel_of([Broken()])
    good, bad = [Outcome("v", image(n), seconds=0.5, promise=kernel(image(n))) for n in range(2)]
    assert fulfilled(good).scored
    failed = fulfilled(bad)
    assert failed.failure is not None and failed.failure.code == "unsupported"
    assert (failed.prepared, failed.version, failed.seconds) == (None, "v", 0.5)


def test_the_actor_itself_fails_an_image_without_finite_answer_and_no_other() -> None:
    def refuse(picture: np.ndarray) -> np.ndarray:
        if picture[0, 0, 0] == image(1).pixels[0, 0, 0]:
            raise ModelRefused("not finite")
        return truth(picture)

    kernel = BatchKernel([], lambda: refuse, 4, 2)
    promises = [kernel(image(n)) for n in range(3)]
    np.testing.assert_array_equal(promises[2](), truth(image(2).pixels))
    with pytest.raises(ModelRefused):
        promises[1]()
