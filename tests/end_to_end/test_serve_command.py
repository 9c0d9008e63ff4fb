"""`nightread serve` as its users start it: from its first second to its last, through kills and promotions."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import ssl
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

sys.path.insert(0, str(Path(__file__).parent))
from serving_command import Command, Reply, begun, exchange, until, write_certificate

from jobs.cli import main
from pipelines.images.preprocess import Preprocessing
from pipelines.models import registry
from pipelines.models.bundle import write_bundle
from pipelines.models.runtime import Scorer
from pipelines.serving.answering import Answer, answer_image
from pipelines.serving.served_model import load_model


@pytest.fixture(scope="module")
def models(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MODELS with three versions of `cells`: v2 is the other network, v3 answers otherwise than it says."""
    models = shutil.copytree(tiny_models, tmp_path_factory.mktemp("served") / "MODELS")
    cells, other = registry.resolve(f"{models}/cells"), registry.resolve(f"{models}/other")
    files = {name: other.read(name) for name in other.files}
    write_bundle(str(models), "cells", other.spec, files)
    write_bundle(str(models), "cells", other.spec, {**files, "scorer.tflite": cells.read("scorer.tflite")})
    return models


@pytest.fixture(scope="module")
def images(draw: Callable[..., list[Path]], tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return [path.read_bytes() for path in draw(tmp_path_factory.mktemp("images"), 8)]


@pytest.fixture(scope="module")
def right(models: Path, images: list[bytes]) -> dict[str, list[Answer]]:
    """By model_id, what the functions answer here."""
    found = {}
    for version in ("v1", "v2"):
        model = load_model(f"{models}/cells@{version}")
        scorer, prepare = Scorer(model.scorer, model.io), Preprocessing(model.served.input_size).prepare
        found[model.served.model_id] = [answer_image(data, prepare, scorer, model.served) for data in images]
    return found


@pytest.fixture(scope="module")
def served(models: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    folder = tmp_path_factory.mktemp("command")
    options = ("--model", models / "cells", "--port", 0, "--workers", 2)
    with begun(folder, environment, *options) as command:
        command.wait_until_ready()
        yield command


def is_right(reply: Reply, number: int, right: dict[str, list[Answer]]) -> bool:
    """Whether a reply is the answer to an image, to the last bit."""
    told = reply.json
    wanted = right[told["model"]["model_id"]][number].as_json(told["request_id"])
    return reply.status == 200 and {**told, "milliseconds": 0} == {**wanted, "milliseconds": 0}


class Load:
    """Clients that ask one image after the other, each on one connection, for the length of a block.

    Attributes:
        got: What they got, each with its image's number.
    """

    def __init__(self, command: Command, images: list[bytes], clients: int) -> None:
        self.got: list[tuple[int, Reply]] = []
        self._command, self._images = command, images
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(number,)) for number in range(clients)]

    def _client(self, number: int) -> None:
        with closing(self._command.connect()) as connection:
            while not self._enough.is_set():
                number = (number + 1) % len(self._images)
                self.got.append((number, exchange(connection, "/predict", self._images[number])))

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        until(lambda: len(self.got) > 10)
        return self

    def __exit__(self, *exception: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join()


def test_one_line_tells_that_it_is_ready_and_answers_are_right(
    served: Command, images: list[bytes], right: dict[str, list[Answer]]
) -> None:
    assert served.told is not None and served.told["workers"] == 2
    assert served.told["model"]["name"] == "cells" and served.told["precision"] == "float32"
    for number, data in enumerate(images):
        assert is_right(served.ask("/predict", data), number, right)
    broken = served.ask("/predict", images[0][:300])
    assert broken.status == 422 and broken.json["error_code"] == "truncated"
    assert "server" not in served.ask("/healthz").headers


def test_no_process_loads_tensorflow_or_ray_or_could_leave_a_core_file(served: Command) -> None:
    workers = served.workers()
    assert len(workers) == 2
    for pid in (served.process.pid, *workers):
        mapped = Path(f"/proc/{pid}/maps").read_text()
        assert re.search(r"ai_edge_litert|httptools", mapped)  # one of them is what it works with
        assert not re.search(r"/(tensorflow|ray|keras)/", mapped)
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"Max core file size +0 +0 ", limits)


def test_a_killed_process_costs_no_request(
    served: Command, images: list[bytes], right: dict[str, list[Answer]]
) -> None:
    before = served.workers()
    with Load(served, images, clients=4) as load:
        os.kill(before[0], signal.SIGSTOP)
        stopped = len(load.got)
        until(lambda: len(load.got) > stopped + 10)  # so that it has an image in its hands for sure
        os.kill(before[0], signal.SIGKILL)
        until(lambda: len(served.workers()) == 2 and before[0] not in served.workers())
    got = load.got
    # The image in its hands is not to blame, and answered by another.
    assert len(got) > 10 and all(reply.status == 200 and is_right(reply, number, right) for number, reply in got)
    assert "SIGKILL" in served.log.read_text()


def test_a_promotion_takes_over_without_losing_a_request_and_a_bad_one_does_not(
    served: Command, models: Path, images: list[bytes], right: dict[str, list[Answer]]
) -> None:
    with Load(served, images, clients=2) as load:
        for version, answers in (("v2", "v2"), ("v3", "v2"), ("v1", "v1")):
            registry.promote(f"{models}/cells@{version}")
            served.process.send_signal(signal.SIGHUP)
            failed = 1 if version != answers else 0
            until(lambda failed=failed: metric(served, "promotion_failed") == failed)
            until(lambda answers=answers: served.ask("/model").json["version"] == answers)
    got = load.got
    assert {reply.status for _, reply in got} == {200}
    assert all(is_right(reply, number, right) for number, reply in got)
    assert Counter(reply.json["model"]["version"] for _, reply in got).keys() == {"v1", "v2"}
    assert "fails its self-test" in served.log.read_text()


def metric(served: Command, name: str) -> float:
    found = re.search(rf"^nightread_serve_{name} (\S+)$", served.ask("/metrics").body.decode(), re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_it_is_healthy_at_once_ready_after_the_test_and_drains_at_the_end(
    models: Path, images: list[bytes], right: dict[str, list[Answer]], environment: dict[str, str], tmp_path: Path
) -> None:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ("--model", models / "cells@v1", "--port", port, "--workers", 1)
    with begun(tmp_path, environment, *options) as command:
        command.port = port
        until(command.workers)
        [worker] = command.workers()
        os.kill(worker, signal.SIGSTOP)
        until(lambda: is_listening(port))
        assert command.ask("/healthz").status == 200
        for path, body in (("/readyz", None), ("/predict", images[0])):
            reply = command.ask(path, body)
            assert (reply.status, reply.json["error_code"]) == (503, "not_ready") and reply.headers["retry-after"]
        os.kill(worker, signal.SIGCONT)
        command.wait_until_ready()
        assert command.ask("/readyz").status == 200
        os.kill(worker, signal.SIGSTOP)  # so that all of these are under way when the end comes
        got: list[Reply] = []
        threads = [threading.Thread(target=lambda: got.append(command.ask("/predict", images[3]))) for _ in range(10)]
        for thread in threads:
            thread.start()
        until(lambda: metric(command, "queued_images") == 9)
        command.process.send_signal(signal.SIGTERM)
        until(lambda: not is_listening(port))
        os.kill(worker, signal.SIGCONT)
        for thread in threads:
            thread.join()
        assert command.process.wait(30) == 0
        assert len(got) == 10 and all(is_right(reply, 3, right) for reply in got)
        assert not Path(f"/proc/{worker}").exists()


def is_listening(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_renewed_certificate_is_taken_and_what_answers_does_not_outlive_a_killed_server(
    models: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    certificate, key = write_certificate(tmp_path)
    options = ("--port", 0, "--workers", 1, "--tls-cert", certificate, "--tls-key", key)
    with begun(tmp_path, environment, "--model", models / "cells@v1", *options) as command:
        command.wait_until_ready()
        assert command.told is not None and command.told["url"] == f"https://127.0.0.1:{command.port}/"
        assert command.ask("/readyz", secure=True).status == 200

        def shown() -> str:
            return ssl.get_server_certificate(("127.0.0.1", command.port))

        assert shown() == certificate.read_text()
        write_certificate(tmp_path)
        command.process.send_signal(signal.SIGHUP)
        until(lambda: shown() == certificate.read_text())
        renewed = shown()
        certificate.write_text("no certificate")
        command.process.send_signal(signal.SIGHUP)
        until(lambda: "cannot be read again" in command.log.read_text())
        assert shown() == renewed
        [worker] = command.workers()
        command.process.kill()
        command.process.wait()
        until(lambda: not Path(f"/proc/{worker}").exists(), seconds=10)


def test_what_cannot_be_served_is_one_sentence(
    models: Path, served: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NIGHTREAD_SERVE_TOKEN", raising=False)
    keys = {name: tmp_path / f"{name}.pem" for name in ("other", "locked", "text")}
    keys["other"].write_bytes(write_certificate(tmp_path)[1].read_bytes())
    certificate, own = write_certificate(tmp_path)
    key = serialization.load_pem_private_key(own.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"secret")
    pem, private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    keys["locked"].write_bytes(key.private_bytes(pem, private, locked))
    keys["text"].write_text("This is no key.")
    encrypted = f"cells --port 0 --tls-cert {certificate} --tls-key"
    for arguments, code, message in (
        (f"cells --port {served.port}", 2, f"Port {served.port} of 127.0.0.1 is taken."),
        ("cells --port 70000", 2, "--port 70000"),
        ("cells --host 0.0.0.0", 2, "NIGHTREAD_SERVE_TOKEN is not set"),
        ("cells --host 0.0.0.0 --no-auth", 2, "unencrypted"),
        ("cells --host 192.0.2.7 --no-auth --behind-proxy --port 0", 2, "no address of this machine"),
        ("cells --host no.such.host.invalid --no-auth --behind-proxy", 2, "no name or address"),
        ("cells --workers 0", 2, "workers is 0"),
        ("cells --precision int4", 2, "int4"),
        ("cells --precision int8 --port 0 --workers 1", 2, "no int8 scorer"),
        ("lungs --port 0 --workers 1", 4, "There is no model lungs"),
        ("cells@v3 --port 0 --workers 1", 4, "self-test"),
        (f"cells --audit-log {tmp_path}/no/folder/log --port 0", 2, "audit"),
        ("cells --address auto --port 0", 2, "port"),
        (
            f"cells --port 0 --tls-cert {tmp_path}/none --tls-key {tmp_path}/none",
            2,
            "none cannot be read: No such file",
        ),
        (f"{encrypted} {keys['other']}", 2, "do not belong together"),
        (f"{encrypted} {keys['text']}", 2, "are no certificate and key without passphrase"),
        (f"{encrypted} {keys['locked']}", 2, "are no certificate and key without passphrase"),
    ):
        assert main(["serve", "--model", *f"{models}/{arguments}".split(), "--json"]) == code, arguments
        told = capsys.readouterr()
        error = json.loads(told.out)["error"]
        assert message in error["message"] and error["cure"] and "Traceback" not in told.err
