"""Requests that no honest client would send: damaged, swollen and disguised images in every kind of body, by a seed."""

from __future__ import annotations

import base64
import json
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
from PIL import Image

FORMATS = {"jpg": "JPEG", "png": "PNG", "gif": "GIF", "bmp": "BMP", "webp": "WEBP", "tif": "TIFF"}


@dataclass(frozen=True)
class Hostile:
    """One request.

    Attributes:
        path: Where it goes.
        body: What it sends.
        headers: With what head.
        image: The image in it, where there is exactly one and it arrives as it is.
    """

    path: str
    body: bytes = field(repr=False)
    headers: dict[str, str]
    image: bytes | None = field(default=None, repr=False)


def honest_images() -> list[bytes]:
    """Small images of all kinds that are read, of eight and sixteen bits, with one and with three channels."""
    generator = np.random.default_rng(7)
    colour = generator.integers(0, 255, (24, 32, 3), dtype=np.uint8)
    found = []
    for name in FORMATS.values():
        for pixels in (colour, colour[..., 0]):
            stream = BytesIO()
            Image.fromarray(pixels).save(stream, name)
            found.append(stream.getvalue())
    for name in ("PNG", "TIFF"):
        stream = BytesIO()
        Image.fromarray(generator.integers(0, 65_535, (24, 32), dtype=np.uint16)).save(stream, name)
        found.append(stream.getvalue())
    return found


def bombs() -> list[bytes]:
    """Few bytes that say they are, or become, very many."""
    zeros = zlib.compress(bytes(30_000_000), 9)
    text = _chunk(b"zTXt", b"Comment\0\0" + zeros) + _chunk(b"iCCP", b"profile\0\0" + zeros)
    line = zlib.compress(bytes(3_001), 9)
    return [
        _png(60_000, 60_000, zeros),
        _png(2**31 - 1, 2**31 - 1, line),
        _png(3_000, 1, line),
        _png(3_000, 1, line, text),
        _png(3_000, 1, zeros),
        _png(0, 0, line),
        b"GIF89a"
        + struct.pack("<HH", 65_535, 65_535)
        + b"\x80\0\0"
        + bytes(6)
        + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;",
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**31 - 1, -(2**31), 1, 24, 0, 0, 0, 0, 0, 0),
        b"\xff\xd8\xff\xc0\0\x0b\x08\xff\xff\xff\xff\x01\x01\x11\0\xff\xda\0\x08\x01\x01\0\0?\0"
        + bytes(99)
        + b"\xff\xd9",
        b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8L" + struct.pack("<I", 9) + b"\x2f\xff\xff\xff\xff\x07\0\0\0\0",
        _tiff([(256, 4, 1, 2**31), (257, 4, 1, 2**31), (273, 4, 1, 8), (279, 4, 1, 2**32 - 1)]),
        _tiff([(256, 4, 1, 10), (257, 4, 1, 10), (273, 4, 2**31, 8), (279, 4, 2**31, 8)]),
        # A directory that is its own next one.
        b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    ]


def disguises(honest: list[bytes]) -> list[bytes]:
    """Files that are two things at once, or that only look like one."""
    archive = b"PK\x03\x04" + bytes(26)
    script = b"<script>alert(1)</script>"
    found = [image + archive for image in honest] + [image + script for image in honest]
    found += [b"GIF89a/*" + script + b"*/=1;", b"%PDF-1.7\n" + honest[0], b"#!/bin/sh\n" + honest[2]]
    found += [first + second for first in honest[::3] for second in honest[1::3]]
    return [*found, b"\x1f\x8b\x08" + bytes(20), b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"", b"\0" * 9999]


def damaged(image: bytes, chance: random.Random) -> bytes:
    """One image with a few wounds."""
    data = bytearray(image)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data)) if data else 0
        wound = chance.randrange(6)
        if wound == 0:
            del data[at:]
        elif wound == 1:
            data[at : at + 1] = bytes([chance.randrange(256)])
        elif wound == 2:
            data[at : at + 4] = chance.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0"])
        elif wound == 3:
            data[at:at] = chance.randbytes(chance.randint(1, 40))
        elif wound == 4:
            data[at:at] = data[at : at + chance.randint(1, 200)] * 3
        else:
            del data[at : at + chance.randint(1, 30)]
    return bytes(data)


def hostile_requests(seed: int, count: int) -> Iterator[Hostile]:
    """Requests by a seed: bombs and disguises first, each once, then random ones.

    Args:
        seed: The same seed gives the same requests.
        count: How many.
    """
    chance = random.Random(seed)
    honest = honest_images()
    known = [*bombs(), *disguises(honest)]
    for number in range(count):
        if number < len(known):
            yield _sent(known[number], random.Random(number))
        elif chance.random() < 0.2:
            yield _nonsense(chance)
        else:
            image = (
                chance.randbytes(chance.randint(0, 3000))
                if chance.random() < 0.2
                else damaged(chance.choice(honest), chance)
            )
            yield _sent(image, chance)


def _sent(image: bytes, chance: random.Random) -> Hostile:
    """An image on one of its ways."""
    way = chance.randrange(6)
    text = base64.b64encode(image).decode()
    if way == 0:
        return Hostile("/predict", image, {"Content-Type": chance.choice(["image/jpeg", "image/x", ""])}, image)
    if way == 1:
        return Hostile("/predict", json.dumps({"image": text}).encode(), {"Content-Type": "application/json"}, image)
    if way == 2:
        body = b'--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n' + image + b"\r\n--x--"
        return Hostile("/predict", body, {"Content-Type": "multipart/form-data; boundary=x"})
    if way == 3:
        return Hostile(f"/preview?side={chance.choice([16, 200, 4096])}", image, {})
    if way == 4:
        body = json.dumps({"images": [text, "AAAA", text[:-1]]}).encode()
        return Hostile("/predict/batch", body, {"Content-Type": "application/json"})
    return Hostile("/predict?envelope=lambda", image, {"Content-Type": "application/octet-stream"}, image)


def _nonsense(chance: random.Random) -> Hostile:
    """A body that is none, or under a wrong name."""
    pieces = [
        b"--x",
        b"\r\n",
        b"{",
        b'"image"',
        b":",
        b"[",
        b"]",
        b'"AAAA"',
        b"--",
        b"\0",
        b'filename="',
        b"form-data; ",
        b"\xff",
    ]
    body = b"".join(chance.choices(pieces, k=chance.randint(0, 60)))
    kinds = [
        "application/json",
        "multipart/form-data; boundary=x",
        "multipart/form-data",
        "text/html",
        "",
        "x" * 300,
        "image/png",
    ]
    return Hostile(
        chance.choice(["/predict", "/predict/batch", "/preview"]), body, {"Content-Type": chance.choice(kinds)}
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, packed: bytes, before: bytes = b"") -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _tiff(entries: list[tuple[int, int, int, int]]) -> bytes:
    fields = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + fields + bytes(4)
