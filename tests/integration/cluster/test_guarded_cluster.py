"""A Ray of several nodes that asks for a token and encrypts: submitting to it, and nodes that cannot score."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from ray.util import get_node_ip_address

sys.path.insert(0, str(Path(__file__).parents[1]))
from ray_nodes import Nodes, free_port, ray_nodes

from cluster.door import knock
from pipelines.errors import UsageError

IMAGES = 6
SECRET = "hunter2-hunter2"


def certificates(folder: Path) -> dict[str, str]:
    """An authority and one certificate for this machine, as RAY_TLS_… variables."""
    folder.mkdir()
    now = datetime.datetime.now(datetime.UTC)
    addresses = {"127.0.0.1", get_node_ip_address()}  # the second is what Ray calls this machine by
    names: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    names.append(x509.DNSName("localhost"))

    def signed(name: str, key: Any, issuer: str, issuer_key: Any, authority: bool) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if not authority:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    (folder / "ca.pem").write_bytes(signed("ward", authority_key, "ward", authority_key, True))
    (folder / "node.pem").write_bytes(signed("node", key, "ward", authority_key, False))
    (folder / "node.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(folder / "node.pem"),
        "RAY_TLS_SERVER_KEY": str(folder / "node.key"),
        "RAY_TLS_CA_CERT": str(folder / "ca.pem"),
    }


@dataclass(frozen=True)
class Ward:
    """The cluster, and what is scored on it."""

    nodes: Nodes
    dashboard: str
    archive: Path
    score: tuple[str, ...]
    results: Path


@pytest.fixture(scope="module")
def ward(
    environment: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    tiny_models: Path,
    draw: Callable[..., list[Path]],
) -> Iterator[Ward]:
    """A head without cores and one node with a core: what is scored crosses the wire between them."""
    folder = tmp_path_factory.mktemp("ward")
    draw(folder / "images", IMAGES)
    port = free_port()
    with_python = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    started_by = {**environment, **certificates(folder / "tls"), "PATH": with_python}
    arguments = ("score", folder / "images", "--model", tiny_models / "cells", "--results", folder / "results")
    # Two nodes of one folder would unpack what was submitted into the same place, under each other's feet.
    with ray_nodes(started_by) as nodes, tempfile.TemporaryDirectory(prefix="ward-", dir="/tmp") as apart:
        nodes.head(dashboard=port)
        nodes.add(temp=Path(apart))
        yield Ward(
            nodes,
            f"http://127.0.0.1:{port}",
            folder / "images",
            tuple(map(str, arguments)),
            folder / "results",
        )


def test_a_command_is_submitted_once_and_ends_as_it_ended_there(ward: Ward, nightread: Callable[..., Any]) -> None:
    known = {**ward.nodes.environment, "AWS_SECRET_ACCESS_KEY": SECRET, "NIGHTREAD_S3_RESULTS_REGION": "muc"}

    def submit(*arguments: str) -> Any:
        return nightread("submit", "--address", ward.dashboard, *arguments, env=known)

    for _ in range(20):  # a dashboard takes a while before it takes jobs
        if (first := submit("--", *ward.score)).code != 75:
            break
        assert "No available agent" in first.err or "No job server answers" in first.err
    assert first.code == 0, first.err
    assert first.answer["scored"] == first.answer["found"] == IMAGES
    job = first.err.splitlines()[0].removeprefix("submitted as ")
    today = {f"{datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=hours):%Y-%m-%d}" for hours in (0, 1)}
    assert job.startswith("nightread-") and job[-10:] in today

    again = submit("--", *ward.score)
    assert again.code == 0 and again.answer == first.answer
    assert "has finished before" in again.err
    assert len(list((ward.results / "nights").iterdir())) == 1, "it ran once"

    refused = submit("--id", "lost", "--", "models", "show", "/no/such/model")
    assert refused.code == refused.answer["exit_code"] == 4
    assert "error: " in refused.err
    more = submit("--id", "lost", "--no-wait", "--json", "--", "models", "show", "/no/such/model")
    assert more.code == 0 and (more.answer["id"], more.answer["submitted"]) == ("lost-2", True)

    assert submit("--status", job, "--json").answer["exit_code"] == 0
    assert submit("--status", "nobody").code == 2
    written = submit("--logs", job, "--json").answer
    assert json.loads(written["answer"]) == first.answer
    _tells_no_secret(ward, known["RAY_AUTH_TOKEN"], "\n".join(written["log"]))


def _tells_no_secret(ward: Ward, token: str, log: str) -> None:
    """What everyone who sees the cluster can read names no key, no token and no image, and says where storage is."""
    request = urllib.request.Request(f"{ward.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        told = answer.read().decode()
    jobs = json.loads(told)
    assert {job["runtime_env"]["env_vars"].get("NIGHTREAD_S3_RESULTS_REGION") for job in jobs} == {"muc"}
    for text in (told, log):
        assert SECRET not in text and token not in text
        assert not any(image.name in text for image in ward.archive.iterdir())


def test_a_node_that_lacks_something_is_named_before_the_first_image(
    ward: Ward, nightread: Callable[..., Any], tmp_path: Path
) -> None:
    def score() -> Any:
        return nightread(*ward.score, "--rescore", "--address", ward.nodes.address, "--json", env=known)

    known = ward.nodes.environment
    other = tmp_path / "other" / "simplejpeg-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: simplejpeg\nVersion: 0.0.1\n")
    before = len(list((ward.results / "nights").iterdir()))
    old = ward.nodes.add(env={"PYTHONPATH": f"{other.parent}{os.pathsep}{known['PYTHONPATH']}"})
    done = score()
    assert done.code == 2, done.err
    assert old.node_id[:8] in done.err and "simplejpeg 0.0.1, not" in done.err
    old.kill()
    if os.geteuid() == 0 and shutil.which("unshare"):
        hides = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(ward.archive)]
        blind = ward.nodes.add(within=hides)
        done = score()
        assert done.code == 2, done.err
        assert blind.node_id[:8] in done.err and "the archive's folder is empty there" in done.err
        blind.kill()
    assert not list(ward.results.glob("runs/*/parts/*.parquet")), "not one image was scored"
    assert not list(ward.results.glob("runs/*/.node-check*"))
    assert len(list((ward.results / "nights").iterdir())) > before


def test_who_has_no_certificate_or_another_token_is_not_let_in(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ward.nodes.environment.items():
        if name.startswith("RAY_"):
            monkeypatch.setenv(name, value)
    assert knock(ward.nodes.address, insecure=False).asks_for_token
    wrong = {
        "RAY_AUTH_TOKEN": ("0" * 64, "refuses the token"),
        "RAY_USE_TLS": ("0", "does not answer as Ray does"),
        "RAY_TLS_CA_CERT": ("/no/such.pem", "names /no/such.pem, which cannot be read"),
    }
    for name, (value, said) in wrong.items():
        with monkeypatch.context() as changed, pytest.raises(UsageError, match=said):
            changed.setenv(name, value)
            knock(ward.nodes.address, insecure=False)
    foreign = certificates(ward.results.parent / "foreign")
    with monkeypatch.context() as changed, pytest.raises(UsageError, match="does not answer as Ray with TLS does"):
        for name, value in foreign.items():
            changed.setenv(name, value)
        knock(ward.nodes.address, insecure=False)
