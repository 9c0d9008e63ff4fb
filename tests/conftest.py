"""What tests of every kind share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of this checkout."""
    return CHECKOUT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the checkout, or where NIGHTREAD_SHARED_DATA says; skips without it."""
    folder = Path(os.environ.get("NIGHTREAD_SHARED_DATA", CHECKOUT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no folder shared/data beside the checkout; NIGHTREAD_SHARED_DATA names another")
    return folder
