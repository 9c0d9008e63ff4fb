"""What tests of the upload page share: a browser, and pictures of every kind that the page treats in its own way."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

CHROMIUM = "/usr/bin/chromium"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    if not os.path.exists(CHROMIUM):
        pytest.skip(f"there is no Chromium at {CHROMIUM}")
    with playwright.sync_playwright() as driver:
        # Chromium refuses to be root in its own sandbox.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, random = tmp_path_factory.mktemp("files"), np.random.default_rng(5)
    rough = random.integers(0, 255, (9, 12, 3), dtype=np.uint8)
    smooth = cv2.resize(rough, (640, 480), interpolation=cv2.INTER_CUBIC)
    contents = {
        "plain.jpg": cv2.imencode(".jpg", smooth)[1].tobytes(),
        "plain.png": cv2.imencode(".png", smooth[:300, :200])[1].tobytes(),
        # Browsers cut 16 bits down to 8 in ways of their own.
        "deep.png": cv2.imencode(".png", smooth[:60, :80].astype(np.uint16) * 100)[1].tobytes(),
        "scan.tif": cv2.imencode(".tiff", smooth[:120, :160])[1].tobytes(),
        "notes.jpg": b"These are no pixels.",
    }
    contents["half.png"] = contents["plain.png"][: len(contents["plain.png"]) // 2]
    contents["empty.png"] = b""
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return {name: folder / name for name in contents}
