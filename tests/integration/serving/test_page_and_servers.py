"""The upload page before servers that start, go away, are busy or want a token; and the page's own functions."""

from __future__ import annotations

import csv
import io
import select
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import pytest
from served_pages import (
    Served,
    begin,
    certificate,
    finished,
    free_port,
    serving,
    standing_still,
    visiting,
    worker_of,
)

from pipelines.serving.page import SCRIPTS

TOKEN = "0123456789abcdef-of-the-test"
SHARES = "95.0 % of the positive ones were called positive, 92.0 % of the others negative."


@pytest.fixture(scope="module")
def served(
    tiny_models: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("served"), tiny_models / "cells", environment) as served:
        yield served


def test_a_server_that_goes_away_starts_and_is_busy_is_waited_for(
    browser: Any, tiny_models: Path, environment: dict[str, str], files: dict[str, Path], tmp_path: Path
) -> None:
    port, model = free_port(), tiny_models / "cells"
    starting, _ = begin(tmp_path, model, environment, port=port)
    try:
        with standing_still(worker_of(starting)):
            wait_until_it_listens(port)
            page_is_open = visiting(browser, f"http://127.0.0.1:{port}/")
            visit = page_is_open.__enter__()
            visit.page.wait_for_selector("#banner:not([hidden])")
            assert visit.text("#banner-title") == "The server is not ready yet."
        visit.page.wait_for_selector("#about:not([hidden])")
        visit.page.wait_for_selector("#banner", state="hidden")
        with standing_still(worker_of(starting)):
            waiting = [sent(port, files["plain.jpg"].read_bytes()) for _ in range(40)]
            # Only who is turned away is answered now: then the queue is full.
            assert select.select(waiting, [], [], 20)[0]
            visit.choose(files["plain.jpg"])
            visit.page.wait_for_selector("#banner:not([hidden])")
            assert visit.text("#banner-title") == "The server is busy."
            for one in waiting:
                one.close()
        first = visit.verdict()
        assert finished(starting) == 0
        visit.choose(files["plain.png"])
        visit.page.wait_for_selector("#banner:not([hidden])")
        assert visit.text("#banner-title") == "The server does not answer."
        assert first == visit.text("#rows .decided >> nth=0")
        with serving(tmp_path, model, environment, port=port):
            visit.page.click("#banner-button")
            visit.verdict()
            visit.all_done()
            assert visit.page.is_hidden("#banner")
            page_is_open.__exit__(None, None, None)
    finally:
        if starting.poll() is None:
            starting.kill()
            starting.wait()


def wait_until_it_listens(port: int) -> None:
    for _ in range(400):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
            raise AssertionError("it was ready too early for this test")
        except urllib.error.HTTPError as error:
            assert error.code == 503
            return
        except OSError:
            time.sleep(0.02)
    raise AssertionError("it does not listen")


def sent(port: int, data: bytes) -> socket.socket:
    """A request whose answer nobody has read yet."""
    connection = socket.create_connection(("127.0.0.1", port))
    head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n"
    connection.sendall(f"{head}Content-Type: application/octet-stream\r\n\r\n".encode() + data)
    return connection


def test_a_token_is_asked_for_once_and_kept_in_memory_only(
    browser: Any, tiny_models: Path, environment: dict[str, str], files: dict[str, Path], tmp_path: Path
) -> None:
    cert, key = certificate(tmp_path)
    secrets = {**environment, "NIGHTREAD_SERVE_TOKEN": TOKEN}
    options = ("--tls-cert", str(cert), "--tls-key", str(key))
    with serving(tmp_path, tiny_models / "cells", secrets, *options) as served:
        assert served.url.startswith("https://")
        with visiting(browser, served.url, ignore_https_errors=True) as visit:
            page = visit.page
            page.wait_for_selector("dialog[open]")
            page.keyboard.press("Escape")
            page.wait_for_selector("#banner:not([hidden])")
            assert visit.text("#banner-title") == "A token is needed."
            visit.choose(files["plain.jpg"])
            page.click("#banner-button")
            for wrong in ("not-the-token-of-this-server", "with space"):
                page.fill("#token", wrong)
                page.keyboard.press("Enter")
                page.wait_for_selector("#token-wrong:not(:empty)")
                page.wait_for_selector("dialog[open]")
            with page.expect_request("**/predict") as predicted:
                page.fill("#token", TOKEN)
                page.keyboard.press("Enter")
            visit.verdict()
            page.wait_for_selector("#about:not([hidden])")
            assert predicted.value.headers["authorization"] == f"Bearer {TOKEN}"
            assert page.input_value("#token") == "" and page.is_hidden("dialog")
            kept = page.evaluate(
                "() => [localStorage.length, sessionStorage.length, document.cookie, location.href, name]"
            )
            assert kept == [0, 0, "", served.url, ""]
            state = page.context.storage_state()
            assert state == {"cookies": [], "origins": []}
            assert TOKEN not in page.content() and not [one for one in visit.asked if TOKEN in one]
            page.reload()
            page.wait_for_selector("dialog[open]")
        assert TOKEN not in served.log.read_text()


@pytest.fixture
def of(browser: Any) -> Iterator[Callable[..., Any]]:
    """Calls functions of the page's own scripts, in a page without a policy, where a test may call them."""
    page = browser.new_page()
    sources = resources("pipelines.serving") / "page"
    page.add_script_tag(content="".join((sources / name).read_text() for name in SCRIPTS if name != "main.js"))
    yield lambda expression, *given: page.evaluate(f"given => ({expression})(...given)", list(given))
    page.close()


def plain(text: Any) -> Any:
    return text.replace("\u00a0", " ") if isinstance(text, str) else [one.replace("\u00a0", " ") for one in text]


def test_the_pages_numbers_sentences_and_tables_for_spreadsheets(of: Callable[..., Any]) -> None:
    shares = (0, 1e-9, 0.0004, 0.0006, 0.5, 0.9994, 0.99951, 1)
    texts = ["0.0 %", "< 0.1 %", "< 0.1 %", "0.1 %", "50.0 %", "99.9 %", "> 99.9 %", "100.0 %"]
    assert [plain(of("perCent", share)) for share in shares] == texts
    assert plain(of("comparable", 0.29377, 0.29402)) == ["29.38 %", "29.40 %"]
    assert plain(of("comparable", 0.0003, 0.4648, 0.6669)) == ["0.03 %", "46.5 %", "66.7 %"]
    two = {"positive_classes": ["b"], "thresholds": {"threshold": 0.3, "refer_low": 0.3, "refer_high": 0.6}}

    def answer(p: float, decision: str) -> dict[str, Any]:
        label = "b" if p > 0.5 else "a"
        return {"p_positive": p, "decision": decision, "predicted_label": label, "probabilities": {"a": 1 - p, "b": p}}

    for p, decision, differs in ((0.1, "negative", False), (0.45, "refer", True), (0.9, "positive", False)):
        sentence = plain(of("decisionSentence", answer(p, decision), two))
        assert f"The probability of b is {p * 100:.1f} %" in sentence
        assert bool(of("differenceSentence", answer(p, decision), two)) is differs
    sharp = {**two, "thresholds": {"threshold": 0.2, "target_sensitivity": 0.95}}
    why = plain(of("differenceSentence", answer(0.38, "positive"), sharp))
    assert "a (62.0 %)" in why and "b (38.0 %) reaches 20.0 %" in why and "95.0 % of the positive ones" in why
    assert "stays below" in of(
        "differenceSentence", answer(0.55, "negative"), {**sharp, "thresholds": {"threshold": 0.6}}
    )
    cells = ["=1", "+1", "-1", "@a", "\t=1", " =1", "\uff1d1", "a,b", 'say "a"', "two\r\nlines", "plain", "", 0.1, None]
    guarded = ["'=1", "'+1", "'-1", "'@a", "'\t=1", "' =1", "'\uff1d1", *cells[7:12], "0.1", ""]
    text = ",".join(of("cell", value) for value in cells)
    assert next(csv.reader(io.StringIO(text, newline=""))) == guarded


FEW = {"positives": 1, "negatives": 12, "sensitivity": 1.0, "specificity": 1.0}
MANY = {"positives": 40, "negatives": 1200, "sensitivity": 0.95, "specificity": 0.92}
CARD = {"card": {"images": {"val": {"a": 1200, "b": 40}}}}


@pytest.mark.parametrize(
    ("thresholds", "card", "sentences"),
    [
        (
            {"cases": 41, "referred": 28, "decided": FEW},
            {},
            "28 of 41 pictures were referred. Of the rest, 1 of 1 positive one was called positive, and 12 of 12 "
            "negative ones negative.",
        ),
        (
            {"cases": 41, "referred": 1, "decided": {**FEW, "positives": 0, "sensitivity": None}},
            {},
            "1 of 41 pictures was referred. Of the rest, none was positive, and 12 of 12 negative ones were called "
            "negative.",
        ),
        (
            {"cases": 1300, "referred": 60, "decided": MANY},
            {},
            "60 of 1,300 pictures were referred. Of the rest, 38 of 40 positive ones (95.0 %) were called positive, "
            "and 1,104 of 1,200 negative ones (92.0 %) negative.",
        ),
        (
            {"cases": 9, "referred": 9, "decided": {"positives": 0, "negatives": 0}},
            {},
            "9 of 9 pictures were referred.",
        ),
        (
            {"sensitivity": 0.95, "specificity": 0.92},
            CARD,
            "38 of 40 positive ones (95.0 %) were called positive, and 1,104 of 1,200 negative ones (92.0 %) negative.",
        ),
        # The card's pictures are others than those that the shares are of, or nobody says how many there were.
        ({"sensitivity": 0.9501, "specificity": 0.92}, CARD, SHARES),
        ({"sensitivity": 0.9501, "specificity": 0.92}, {}, SHARES),
    ],
)
def test_what_the_limits_reached_is_said_in_counts(
    of: Callable[..., Any], thresholds: dict[str, Any], card: dict[str, Any], sentences: str
) -> None:
    said = {"positive_classes": ["b"], "thresholds": thresholds, **card}
    assert plain(of("reachedWords", said)) == [f"On validation {sentences}"]


def test_a_dicom_file_is_named_and_numbers_begin_again(browser: Any, served: Served, files: dict[str, Path]) -> None:
    with visiting(browser, served.url, accept_downloads=True) as visit:
        dicom = bytes(128) + b"DICM" + bytes(400)
        picture = files["plain.png"].read_bytes()
        visit.choose(
            *({"name": name, "mimeType": "", "buffer": data} for name, data in (("IM0", dicom), ("a", picture)))
        )
        visit.all_done()
        visit.page.click("#rows button >> text=IM0")
        assert visit.verdict() == "No answer" and "DICOM" in visit.text("#answer")
        with visit.page.expect_download() as saved:
            visit.page.click("#csv")
        rows = list(csv.DictReader(Path(saved.value.path()).read_text("utf-8-sig").splitlines()))
        # By this id the server's logs know the picture without answer too.
        assert len({row["request_id"] for row in rows} - {""}) == 2
        visit.page.click("#remove-all")
        visit.choose(files["plain.jpg"], files["plain.png"])
        visit.all_done()
        assert visit.texts("#rows .of-place") == ["1", "2"]
