"""What stands between a client and its S3 server in a hospital: a gateway with rules of its own, and a web proxy."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import ipaddress
import re
import select
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

_HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "expect", "content-length", "proxy-connection")
_SIGNED_BY = re.compile(r"Credential=([^/]+)/\d+/([^/]+)/")
_CHECKSUM = re.compile(r"x-amz-(checksum-|sdk-checksum-|trailer)")


@dataclass(frozen=True)
class Request:
    """What a gateway saw of a request.

    Attributes:
        method: GET, PUT, …
        path: With the query.
        host: The Host header.
        key_id: Who signed it; empty where nobody did.
        region: Of the signature.
        headers: All of them, names in lower case.
    """

    method: str
    path: str
    host: str
    key_id: str
    region: str
    headers: dict[str, str]


Rule = Callable[[Request], tuple[int, str] | None]


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """A client that hangs up, or that does not trust the certificate, is no news."""


class S3Gateway:
    """A running gateway in front of an S3 server.

    Attributes:
        endpoint: Its address.
        rule: Called with each request; answers (status, S3 error code) to refuse it, or None. May be replaced.
        seen: The requests so far.
        bucket_domain: A host name; a request to `BUCKET.` and this name is one for that bucket.
    """

    def __init__(self, target: str, certificate: Path | None = None) -> None:
        self._target = urlsplit(target)
        self.rule: Rule = lambda _request: None
        self.seen: list[Request] = []
        self.bucket_domain = ""
        self._lock = threading.Lock()
        self._server = _Quiet(("127.0.0.1", 0), _gateway_handler(self))
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            # The handshake belongs to the thread of the connection, not to the one that accepts.
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        scheme = "http" if certificate is None else "https"
        self.endpoint = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def signers(self) -> Counter[str]:
        """How many requests each key signed."""
        return Counter(request.key_id for request in self.seen)

    def decide(self, request: Request) -> tuple[int, str] | None:
        """Note a request and ask the rule."""
        with self._lock:
            self.seen.append(request)
            return self.rule(request)

    def forward(self, request: Request, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Ask the real server, by the path, as if the key were its own."""
        bucket, found, _ = request.host.rpartition("." + self.bucket_domain) if self.bucket_domain else ("", "", "")
        path = f"/{bucket}{request.path}" if found else request.path
        headers = {**request.headers, "host": self._target.netloc}
        connection = http.client.HTTPConnection(self._target.hostname or "", self._target.port, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest(request.method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                if name not in _HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read()
            return answer.status, answer.getheaders(), content


def only_key(key_id: str) -> Rule:
    """Admit who signs with this key, as a server does that knows no other."""
    return lambda request: None if request.key_id == key_id else (403, "InvalidAccessKeyId")


def no_checksums(request: Request) -> tuple[int, str] | None:
    """Refuse what servers refuse that are older than the headers for checksums."""
    newer = any(_CHECKSUM.match(name) for name in request.headers)
    return (501, "NotImplemented") if newer else None


class Renewal:
    """Keys that end: after so many requests the server refuses them, and a moment later others stand in the file."""

    def __init__(self, file: Path, requests: int, seconds: float) -> None:
        self.file = file
        self.refused = 0
        self._left, self._seconds = requests, seconds
        self._write("old")

    def __call__(self, request: Request) -> tuple[int, str] | None:
        if request.key_id == "new-key":
            return None
        self._left -= 1
        if self._left >= 0:
            return None
        if not self.refused:
            threading.Timer(self._seconds, self._write, ("new",)).start()
        self.refused += 1
        return 400, "ExpiredToken"

    def _write(self, name: str) -> None:
        beside = self.file.with_suffix(".new")
        beside.write_text(
            f"[default]\naws_access_key_id = {name}-key\naws_secret_access_key = {name}-secret\n"
            f"aws_session_token = {name}-token\n"
        )
        beside.replace(self.file)


def all_of(*rules: Rule) -> Rule:
    """Refuse what one of these refuses."""
    return lambda request: next((refused for rule in rules if (refused := rule(request))), None)


def _gateway_handler(gateway: S3Gateway) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self._body(headers)
            signed = _SIGNED_BY.search(headers.get("authorization", ""))
            key_id, region = (signed[1], signed[2]) if signed else ("", "")
            request = Request(self.command, self.path, headers.get("host", ""), key_id, region, headers)
            refused = gateway.decide(request)
            if refused:
                status, code = refused
                self._answer(status, [("Content-Type", "application/xml")], _error_document(code, key_id))
            else:
                self._answer(*gateway.forward(request, body))

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_one

        def _body(self, headers: dict[str, str]) -> bytes:
            if headers.get("transfer-encoding") != "chunked":
                return self.rfile.read(int(headers.get("content-length") or 0))
            pieces = []
            while size := int(self.rfile.readline().strip(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)

        def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
            self.send_response_only(status)
            length = str(len(content))
            for name, value in headers:
                if name.lower() == "content-length" and self.command == "HEAD":
                    length = value
                elif name.lower() not in _HOP_BY_HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


def _error_document(code: str, key_id: str) -> bytes:
    """As S3 answers: with the caller's key in it, which must not get into a message."""
    return f"<Error><Code>{code}</Code><Message>No.</Message><AWSAccessKeyId>{key_id}</AWSAccessKeyId></Error>".encode()


class WebProxy:
    """A running web proxy: it passes plain requests on, and tunnels for encrypted ones.

    Attributes:
        address: What `HTTP_PROXY` and `HTTPS_PROXY` are set to.
        names: Host names that it alone knows, and the `host:port` that each stands for.
        asked: `host:port` of each request and tunnel.
    """

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.asked: list[str] = []
        self._server = _Quiet(("127.0.0.1", 0), _proxy_handler(self))
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def find(self, place: str) -> tuple[str, int]:
        """Note who is asked for; say where that is."""
        self.asked.append(place)
        host, _, port = place.rpartition(":")
        known = next((there for name, there in self.names.items() if host == name or host.endswith("." + name)), None)
        host, _, port = (known or place).rpartition(":")
        return host, int(port)


def _proxy_handler(proxy: WebProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_CONNECT(self) -> None:
            with socket.create_connection(proxy.find(self.path), timeout=10) as there:
                self.send_response_only(200, "Connection established")
                self.end_headers()
                self._tunnel(there)
            self.close_connection = True

        def _tunnel(self, there: socket.socket) -> None:
            ends = {self.connection: there, there: self.connection}
            while True:
                for ready in select.select(list(ends), [], [], 60)[0] or [None]:
                    data = ready.recv(65536) if ready else b""
                    if not data:
                        return
                    ends[ready].sendall(data)

        def pass_on(self) -> None:
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            connection = http.client.HTTPConnection(*proxy.find(f"{url.hostname}:{url.port or 80}"), timeout=60)
            with contextlib.closing(connection):
                path = url.path + (f"?{url.query}" if url.query else "")
                connection.putrequest(self.command, path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in _HOP_BY_HOP:
                        connection.putheader(name, value)
                connection.putheader("Content-Length", str(len(body)))
                connection.endheaders(body)
                answer = connection.getresponse()
                content = answer.read()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _HOP_BY_HOP:
                    self.send_header(name, value)
            head = self.command == "HEAD"
            self.send_header("Content-Length", answer.getheader("Content-Length") if head else str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


@contextlib.contextmanager
def running(server: S3Gateway | WebProxy) -> Iterator[None]:
    """Close a server at the end of the block."""
    try:
        yield
    finally:
        server.close()


def make_authority(folder: Path, *host_names: str) -> tuple[Path, Path]:
    """Make a private authority, and a server's certificate that it signed.

    Args:
        folder: Where the files are put.
        host_names: Names of the server beside 127.0.0.1.

    Returns:
        The authority's certificate, which clients trust; and a file of the server's certificate and key.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def named(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    def certificate(subject: str, key: ec.EllipticCurvePrivateKey, authority: bool) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(named(subject))
            .issuer_name(named("Hospital authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )

    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = certificate("Hospital authority", authority_key, True).sign(authority_key, hashes.SHA256())
    names: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
    names += [x509.DNSName(name) for name in host_names]
    server = (
        certificate("store", server_key, False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "authority.pem").write_bytes(authority.public_bytes(pem))
    secret = server_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.pem").write_bytes(server.public_bytes(pem) + secret)
    return folder / "authority.pem", folder / "server.pem"
