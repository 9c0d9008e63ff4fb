"""The answering process: decodes and scores one image at a time, and costs that image only when it dies or hangs.

`python -m pipelines.serving.worker --seconds S` speaks `exchange` over the socket on its standard input. It leaves when
that closes, so that it never outlives the server by more than the image in hand, and an alarm clock that no hanging C
code can mask ends it even there.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import socket
from pathlib import Path
from typing import IO, Any

from pipelines.errors import ImageFailure, NightreadError
from pipelines.images.child import ALARM_SLACK_SECONDS, MEMORY_BYTES
from pipelines.images.members import load_pillow
from pipelines.models.golden import compare_golden
from pipelines.models.runtime import Scorer, ScorerIO
from pipelines.serving.answering import ServedModel, answer_image, preprocessing_of
from pipelines.serving.exchange import HEAD, READY, failure_of, head
from pipelines.serving.preview import preview_png

Reply = tuple[dict[str, Any], bytes]
Request = tuple[dict[str, Any], bytes]


def main(arguments: list[str] | None = None) -> None:
    """Answer until the server's end of the socket closes."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.serving.worker", description=main.__doc__)
    parser.add_argument("--seconds", type=float, required=True, help="Time for one image.")
    options = parser.parse_args(arguments)
    # Ctrl-C, a closed terminal and systemd's stop reach the whole group; this process ends with its socket, so that
    # what was accepted is answered first.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    channel = socket.socket(fileno=os.dup(0))
    load_pillow()
    with channel, channel.makefile("rb") as requests:
        try:
            told, data = _receive(requests)
            answering = _Answering(told, data)
        except EOFError:
            return
        except NightreadError as error:
            channel.sendall(head({"refused": {"code": error.code, "message": error.message, "cure": error.cure}}))
            return
        del data
        _limit()
        _serve(channel, requests, answering, options.seconds)


class _Answering:
    """A model that passed its self-test here.

    Args:
        told: The server's first message.
        data: The LiteRT model's bytes, then those of its golden file.

    Raises:
        ModelRefused: If it was made for other pixels, does not load, or answers otherwise than when it was made.
        UsageError: If a newer release wrote its golden file.
    """

    def __init__(self, told: dict[str, Any], data: bytes) -> None:
        self._model = ServedModel(**_with_tuples(told["model"]))
        self._prepare = preprocessing_of(self._model).prepare
        scorer, golden = told["lengths"]
        self._scorer = Scorer(data[:scorer], ScorerIO.from_json(told["io"]))
        if golden is not None:
            compare_golden(data[scorer : scorer + golden], told["uri"], self._scorer, self._model.precision)

    def reply(self, told: dict[str, Any], data: bytes) -> Reply:
        """Answer one request."""
        try:
            if "side" in told:
                return {"preview": True}, preview_png(data, told["side"])
            answer = answer_image(data, self._prepare, self._scorer, self._model)
        except ImageFailure as failure:
            return failure_of(failure), b""
        return {"answer": vars(answer)}, b""


def _with_tuples(model: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in model.items()}


def _receive(requests: IO[bytes]) -> Request:
    """One message.

    Raises:
        EOFError: If the server closed its end.
    """
    text, following = HEAD.unpack(_exactly(requests, HEAD.size))
    return json.loads(_exactly(requests, text)), _exactly(requests, following)


def _exactly(requests: IO[bytes], count: int) -> bytes:
    data = requests.read(count)
    if len(data) < count:
        raise EOFError
    return data


def _limit() -> None:
    """Bound this process's memory, forbid core files, and close what a library could print a file's text on."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    # What decoding may take, beyond what the loaded model and the libraries have taken.
    memory = MEMORY_BYTES + pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (memory if hard == resource.RLIM_INFINITY else min(memory, hard), hard))
    # A core file would hold a patient's picture.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _serve(channel: socket.socket, requests: IO[bytes], answering: _Answering, seconds: float) -> None:
    channel.sendall(head(READY))
    while True:
        try:
            told, data = _receive(requests)
        except EOFError:
            return
        # The kernel ends this process where a reply takes longer: no hanging library can hold that up.
        signal.setitimer(signal.ITIMER_REAL, seconds + ALARM_SLACK_SECONDS)
        reply, following = answering.reply(told, data)
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            channel.sendall(head(reply, len(following)) + following)
        except OSError:
            return


if __name__ == "__main__":
    main()
