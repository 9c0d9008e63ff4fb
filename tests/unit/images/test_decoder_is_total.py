from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.errors import ImageFailure
from pipelines.images.decode import decode

CODES = {"not_an_image", "unsupported", "truncated", "too_large"}
MAGIC = [
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR", b"GIF89a",
    b"RIFF\xff\x00\x00\x00WEBPVP8X",
    b"II*\x00\x08\x00\x00\x00", b"MM\x00*\x00\x00\x00\x08", b"II+\x00\x08\x00\x00\x00",
    b"BM" + bytes(12) + b"\x28\x00\x00\x00",
]  # fmt: skip


def files() -> list[bytes]:
    random = np.random.default_rng(3)
    scene = Image.fromarray(random.integers(0, 255, (12, 14, 3), dtype=np.uint8))
    clear = scene.convert("RGBA")
    clear.putalpha(scene.convert("L"))
    made: list[tuple[Image.Image, str, dict[str, object]]] = [
        (scene, "JPEG", {}),
        (scene, "JPEG", {"progressive": True, "subsampling": 0}),
        (scene.convert("CMYK"), "JPEG", {}),
        (scene, "PNG", {}),
        (clear, "PNG", {}),
        (scene.convert("P"), "PNG", {}),
        (Image.fromarray(random.integers(0, 65535, (12, 14), dtype=np.uint16)), "PNG", {}),
        (scene, "GIF", {}),
        (scene, "BMP", {}),
        (scene.convert("1"), "BMP", {}),
        (scene, "WEBP", {}),
        (clear, "WEBP", {"lossless": True}),
        (scene, "TIFF", {}),
        (scene, "TIFF", {"compression": "tiff_lzw"}),
        (scene, "TIFF", {"compression": "jpeg"}),
        (scene.convert("1"), "TIFF", {"compression": "group4"}),
        (Image.fromarray(random.integers(0, 65535, (12, 14), dtype=np.uint16)), "TIFF", {"compression": "tiff_lzw"}),
        (Image.fromarray(random.random((12, 14), dtype=np.float32)), "TIFF", {}),
    ]
    written = []
    for image, kind, options in made:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        written.append(buffer.getvalue())
    return written


FILES = files()


def check_total(data: bytes, target: int | None) -> None:
    try:
        found = decode(data, target)
    except ImageFailure as failure:
        assert failure.code in CODES
        assert failure.message
    else:
        assert found.pixels.dtype == np.uint8 and found.pixels.ndim == 3 and found.pixels.shape[2] == 3
        assert found.pixels.size > 0 and found.frames >= 1


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=300), st.builds(bytes.__add__, st.sampled_from(MAGIC), st.binary(max_size=300))))
def test_random_bytes(capfd: pytest.CaptureFixture[str], data: bytes) -> None:
    check_total(data, 8)
    assert capfd.readouterr() == ("", "")


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(FILES),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4),
    st.booleans(),
)
def test_changed_bytes(
    capfd: pytest.CaptureFixture[str], file: bytes, changes: list[tuple[float, bytes]], insert: bool
) -> None:
    data = bytearray(file)
    for place, new in changes:
        at = int(place * len(data))
        data[at : at + (0 if insert else len(new))] = new
    check_total(bytes(data), 8)
    assert capfd.readouterr() == ("", "")


def test_each_file_decodes_unchanged() -> None:
    failed = []
    for file in FILES:
        try:
            decode(file)
        except ImageFailure as failure:
            failed.append(failure.code)
    # Only floating point without a declared range.
    assert failed == ["unsupported"]


def test_memory_that_is_not_there_is_a_failure_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.images import members

    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(members, "simplejpeg_jpeg", exhausted)
    with pytest.raises(ImageFailure) as failed:
        decode(FILES[0])
    assert failed.value.code == "too_large"


def test_a_broken_installation_is_nobodys_image(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.images import members

    def missing(*_: object) -> None:
        raise ModuleNotFoundError("no such library")

    monkeypatch.setattr(members, "simplejpeg_jpeg", missing)
    with pytest.raises(ModuleNotFoundError):
        decode(FILES[0])


def test_too_many_bytes_are_refused_unread(monkeypatch: pytest.MonkeyPatch, encode: Callable) -> None:
    from pipelines.images import decode as decoding

    monkeypatch.setattr(decoding, "MAX_BYTES", len(FILES[0]) - 1)
    with pytest.raises(ImageFailure) as failed:
        decode(FILES[0])
    assert failed.value.code == "too_large"
