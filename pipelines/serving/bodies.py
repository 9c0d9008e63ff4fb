"""From the body of a request to the bytes of its images: JSON with base64, a form with files, or the file itself.

Plain functions over a whole body in memory, so that a gateway's handler shares them: nothing here touches a disk, and
whatever the bytes are, there is either an image's content or a problem.
"""

from __future__ import annotations

import binascii
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from pipelines.serving.problems import Problem, Refused, refused

MAX_IMAGES = 64
MAX_PARTS = 128
MAX_PART_HEADERS = 16
MAX_PART_HEADER_BYTES = 8192
MAX_CONTENT_TYPE = 1000
# JSON is read only where it can be small apart from its texts: 64 MiB of "{},{}," would become gigabytes of objects.
MAX_JSON_VALUES = 4096

_DATA_URL = re.compile(r"data:([^,]{0,200}),", re.IGNORECASE)
_RAW = "", "application/octet-stream"
_HOW = 'Send an image file as it is, as a file of a form, or as base64 in JSON: {"image": "…"}.'

# The form parser writes bytes of the input into the log; this logger goes nowhere.
_SILENT = logging.Logger("silent", logging.CRITICAL + 1)


@dataclass(frozen=True)
class Form:
    """The kind of a body, from its Content-Type.

    Attributes:
        kind: `raw`, `json` or `multipart`.
        boundary: What stands between the parts of a multipart body.
    """

    kind: Literal["raw", "json", "multipart"]
    boundary: bytes = b""


def form_of(content_type: str | None) -> Form:
    """Tell how to read a body, before it is read.

    Args:
        content_type: The header, or None where there is none: then the body is the image.

    Raises:
        Refused: If it is a kind that holds no image (415), or a form without boundary (400).
    """
    if content_type and (len(content_type) > MAX_CONTENT_TYPE or not content_type.isascii()):
        raise refused("bad_request", "The Content-Type cannot be read.")
    media, options = parse_options_header(content_type)
    name = media.decode("latin-1")
    if name in _RAW or name.startswith("image/"):
        return Form("raw")
    if name == "application/json" or (name.startswith("application/") and name.endswith("+json")):
        return Form("json")
    if name == "multipart/form-data":
        boundary = options.get(b"boundary", b"")
        if not 1 <= len(boundary) <= 70:  # RFC 2046
            raise refused("bad_request", "The form has no boundary of 1 to 70 characters in its Content-Type.")
        return Form("multipart", boundary)
    # What many a client says of itself where its user said nothing, curl's --data-binary among them.
    raise refused("unsupported_media_type", f"{_HOW} The Content-Type has to say which: image/…, or application/json.")


def one_image(form: Form, body: bytes) -> bytes:
    """The content of the one image of a request.

    Args:
        form: The kind of the body.
        body: All of it.

    Returns:
        The file's bytes, never empty; that it is an image is not looked at.

    Raises:
        Refused: If there is none, or it cannot be read, or there are several (400).
    """
    if form.kind == "json":
        content = _of_value(_json_object(body).get("image"))
        if isinstance(content, Problem):
            raise Refused(content)
        return content
    files = _files(form.boundary, body) if form.kind == "multipart" else [body]
    if len(files) > 1:
        raise refused("bad_request", "There are several files; /predict/batch takes them.")
    if not files or not files[0]:
        raise refused("bad_request", "There is no image, or it is empty.")
    return files[0]


def many_images(form: Form, body: bytes) -> list[bytes | Problem]:
    """The contents of the images of a batch, in the order given; in the place of one that cannot be read, why.

    Args:
        form: The kind of the body.
        body: All of it.

    Returns:
        1 to 64 contents or problems.

    Raises:
        Refused: If the body as a whole cannot be read, or holds no image or too many (400).
    """
    if form.kind == "raw":
        raise refused("bad_request", 'A batch is a form with several files, or JSON: {"images": ["base64", …]}.')
    if form.kind == "json":
        values = _json_object(body).get("images")
        if not isinstance(values, list):
            raise refused("bad_request", 'The JSON has no list "images".')
        _check_count(len(values))
        return [_of_value(value) for value in values]
    files = _files(form.boundary, body)
    _check_count(len(files))
    return [file or Problem("bad_request", "The file is empty.") for file in files]


def from_base64(text: str) -> bytes:
    """Decode base64, strictly, but for line breaks, and for blanks around it.

    A blank inside is refused, for it may be a `+` that got lost on its way; the file would be another.

    Args:
        text: Base64, or a data URL with it.

    Raises:
        Refused: If it is neither, or empty (400).
    """
    if found := _DATA_URL.match(text):
        if not found[1].lower().endswith(";base64"):
            raise refused("bad_request", "The data URL is not in base64.")
        text = text[found.end() :]
    try:
        plain = text.strip(" \t\r\n").encode("ascii")
        if b"\n" in plain or b"\r" in plain:  # looking costs a tenth of copying
            plain = plain.translate(None, b"\r\n")
        content = binascii.a2b_base64(plain, strict_mode=True)
    except (ValueError, binascii.Error):
        raise refused("bad_request", "The image is not valid base64.") from None
    if len(plain) % 4 or plain.endswith(b"==="):  # strict mode takes padding that pads nothing
        raise refused("bad_request", "The image is not valid base64.")
    if not content:
        raise refused("bad_request", "The image is empty.")
    return content


def _of_value(value: Any) -> bytes | Problem:
    if not isinstance(value, str):
        return Problem("bad_request", _HOW)
    try:
        return from_base64(value)
    except Refused as problem:
        return problem.problem


def _check_count(count: int) -> None:
    if count == 0:
        raise refused("bad_request", "There is no image.")
    if count > MAX_IMAGES:
        raise refused("bad_request", f"There are more than {MAX_IMAGES} images.")


def _json_object(body: bytes) -> dict[str, Any]:
    # Base64 has none of these characters, so that they count the values.
    if len(body) - len(body.translate(None, b"{[,")) > MAX_JSON_VALUES:
        raise refused("bad_request", "The JSON has too many values.")
    try:
        value = json.loads(body.decode())  # which is twice as fast as leaving the encoding to be guessed
    except (ValueError, RecursionError):
        raise refused("bad_request", "The body is not valid JSON.") from None
    if not isinstance(value, dict):
        raise refused("bad_request", _HOW)
    return value


class _Parts:
    """Collects the files of a form: parts with a file name; of a form with one part only, that one."""

    def __init__(self) -> None:
        self.files: list[bytes] = []
        self.unnamed: list[bytes] = []
        self.ended = False
        self._pieces: list[bytes] = []
        self._name, self._value = b"", b""
        self._is_file = self._is_nothing = False

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        if len(self.files) + len(self.unnamed) >= MAX_PARTS:
            raise refused("bad_request", f"The form has more than {MAX_PARTS} parts.")
        self._pieces, self._name, self._value = [], b"", b""
        self._is_file = self._is_nothing = False

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            _, options = parse_options_header(self._value.decode("latin-1"))
            self._is_file = b"filename" in options
            # What a browser sends for a field of a form in which no file was chosen.
            self._is_nothing = options.get(b"filename") == b""
        self._name, self._value = b"", b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(data[start:end])

    def _end(self) -> None:
        content = b"".join(self._pieces)
        self._pieces = []
        if self._is_nothing and not content:
            return
        (self.files if self._is_file else self.unnamed).append(content)

    def _finish(self) -> None:
        self.ended = True


def _files(boundary: bytes, body: bytes) -> list[bytes]:
    parts = _Parts()
    callbacks: Any = parts.callbacks()
    try:
        parser = MultipartParser(
            boundary, callbacks, max_header_count=MAX_PART_HEADERS, max_header_size=MAX_PART_HEADER_BYTES
        )
        parser.logger = _SILENT
        parser.write(body)
    except FormParserError:
        raise refused("bad_request", "The form cannot be read.") from None
    if not parts.ended:
        raise refused("bad_request", "The form ends early.")
    if not parts.files and len(parts.unnamed) == 1:
        return parts.unnamed
    return parts.files
