"""The upload page in a real browser, against `nightread serve` as a user starts it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import select
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
playwright = pytest.importorskip("playwright.sync_api")
from served_pages import (  # noqa: E402
    CHROMIUM,
    Changes,
    Served,
    begin,
    bytes_written,
    certificate,
    finished,
    free_port,
    serving,
    standing_still,
    visiting,
    worker_of,
)

from pipelines.images.decode import decode  # noqa: E402
from pipelines.serving.page import SCRIPTS  # noqa: E402

pytestmark = pytest.mark.skipif(not os.path.exists(CHROMIUM), reason=f"there is no Chromium at {CHROMIUM}")
TOKEN = "0123456789abcdef-of-the-test"
WIDTHS = (320, 360, 768, 1280, 1920)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        # Chromium refuses to be root in its own sandbox.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server works, and whatever it might want to write."""
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def served(tiny_models: Path, environment: dict[str, str], place: Path) -> Iterator[Served]:
    own = {name: str(place / name) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    for folder in own.values():
        Path(folder).mkdir()
    with serving(place, tiny_models / "cells", {**environment, **own}) as served:
        yield served


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pictures of every kind that the page treats in its own way."""
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


def asked(served: Served, data: bytes) -> dict[str, Any]:
    """The answer to a program."""
    headers = {"Content-Type": "application/octet-stream"}
    with urllib.request.urlopen(urllib.request.Request(f"{served.url}predict", data, headers), timeout=30) as answer:
        return dict(json.load(answer))


def test_a_picture_is_shown_at_once_and_its_answer_is_the_endpoints(
    browser: Any, served: Served, files: dict[str, Path]
) -> None:
    with visiting(browser, served.url) as visit:
        page, data = visit.page, files["plain.jpg"].read_bytes()
        page.wait_for_selector("#about:not([hidden])")
        assert visit.text("#model-line") == "Model cells v1 answers benign or malignant; positive is malignant."
        with page.expect_request("**/predict") as sent:
            visit.choose(files["plain.jpg"])
        request = sent.value
        told = json.dumps(request.all_headers())
        assert request.headers["content-type"] == "application/octet-stream" and "plain" not in told
        answer = asked(served, data)
        assert visit.verdict().lower() == answer["decision"]
        shares = dict(zip(visit.texts(".classes .name"), visit.texts(".classes .share"), strict=True))
        for name, share in answer["probabilities"].items():
            own = next(text for label, text in shares.items() if label.startswith(name))
            assert own == f"{share * 100:.1f} %"
        assert f"{answer['p_positive'] * 100:.1f} %" in visit.text(".verdict .why")
        # The server got these bytes and no others: no form around them, in which a name could stand.
        digest = hashlib.sha256(data).hexdigest()
        assert page.get_attribute("#answer code", "title") == digest == answer["content_sha256"]
        assert "640 × 480 pixels" in visit.text("#answer .facts")
        assert page.evaluate("[document.querySelector('#shown').naturalWidth, document.images.length]") == [640, 1]
        # Drawn by the browser itself: no preview was asked for.
        assert not [one for one in visit.asked if "preview" in one]


def test_pictures_can_be_dropped_and_pasted(browser: Any, served: Served, files: dict[str, Path]) -> None:
    with visiting(browser, served.url, permissions=["clipboard-read", "clipboard-write"]) as visit:
        page = visit.page
        data = list(files["plain.png"].read_bytes())
        held = page.evaluate_handle(
            "bytes => { const held = new DataTransfer();"
            " held.items.add(new File([new Uint8Array(bytes)], 'dropped.png')); return held; }",
            data,
        )
        page.dispatch_event("main", "dragenter", {"dataTransfer": held})
        assert page.is_visible("#drop")
        page.dispatch_event("main", "drop", {"dataTransfer": held})
        assert not page.is_visible("#drop")
        first = visit.verdict()
        assert visit.text("#file-name") == "dropped.png"
        page.evaluate(
            "bytes => navigator.clipboard.write([new ClipboardItem({'image/png':"
            " new Blob([new Uint8Array(bytes)], {type: 'image/png'})})])",
            data,
        )
        page.keyboard.press("Control+v")
        page.wait_for_selector("#rows tr:nth-child(2)")
        visit.all_done()
        assert page.locator("#rows .decided").all_inner_texts() == [first, first]
        assert visit.text("#place") == "2 of 2"


def shown(page: Any) -> tuple[float, float, float]:
    """Where the picture stands in its stage, and how wide it is, in pixels."""
    box, stage = page.locator("#shown").bounding_box(), page.locator("#viewer").bounding_box()
    return box["x"] - stage["x"], box["y"] - stage["y"], box["width"]


def test_zoom_and_pan_by_wheel_buttons_keys_and_drag(browser: Any, served: Served, files: dict[str, Path]) -> None:
    with visiting(browser, served.url) as visit:
        page = visit.page
        visit.choose(files["plain.jpg"])
        page.wait_for_selector("#viewer:not([hidden])")
        stage = page.locator("#viewer").bounding_box()
        whole = shown(page)
        assert whole[2] <= stage["width"] + 1
        page.mouse.move(stage["x"] + 100, stage["y"] + 100)
        page.mouse.wheel(0, -400)
        playwright.expect(page.locator("#viewer")).to_have_class("viewer movable", timeout=30_000)
        wheeled = shown(page)
        # The point below the pointer stays where it is.
        for axis in (0, 1):
            assert (100 - whole[axis]) / whole[2] == pytest.approx((100 - wheeled[axis]) / wheeled[2], abs=0.02)
        page.mouse.down()
        page.mouse.move(stage["x"] + 60, stage["y"] + 80, steps=3)
        page.mouse.up()
        dragged = shown(page)
        assert (wheeled[0] - dragged[0], wheeled[1] - dragged[1]) == pytest.approx((40, 20), abs=1)
        page.focus("#viewer")
        page.keyboard.press("ArrowRight")
        assert dragged[0] - shown(page)[0] == pytest.approx(60, abs=1)
        page.keyboard.press("1")
        assert shown(page)[2] == pytest.approx(640, abs=1) and visit.text("#zoom") == "100 %"
        page.keyboard.press("+")
        assert shown(page)[2] == pytest.approx(800, abs=1)
        page.click("#zoom-out")
        assert shown(page)[2] == pytest.approx(640, abs=1)
        page.keyboard.press("Tab")
        page.focus("#viewer")
        page.keyboard.press("0")
        assert shown(page) == pytest.approx(whole, abs=1)
        for _ in range(80):
            page.keyboard.press("+")
        assert shown(page)[2] <= 640 * 64  # it ends


@pytest.mark.parametrize("name", ["scan.tif", "deep.png"])
def test_what_a_browser_cannot_draw_is_shown_as_the_model_gets_it(
    browser: Any, served: Served, files: dict[str, Path], name: str
) -> None:
    with visiting(browser, served.url) as visit:
        visit.choose(files[name])
        visit.page.wait_for_selector("#viewer:not([hidden])")
        assert visit.text("#drawn-by") == "Preview made by the server"
        drawn = visit.page.evaluate(
            "() => { const image = document.querySelector('#shown'), canvas = document.createElement('canvas');"
            " canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;"
            " const pen = canvas.getContext('2d'); pen.drawImage(image, 0, 0);"
            " return [...pen.getImageData(0, 0, canvas.width, canvas.height).data]; }"
        )
        pixels = decode(files[name].read_bytes()).pixels
        assert np.array_equal(np.array(drawn, np.uint8).reshape(*pixels.shape[:2], 4)[..., :3], pixels)


NAMES = ("=1+1.jpg", 'a "b", c.jpg', "<img src=x onerror=alert(1)>.jpg", "picture 10.jpg", "picture 9.jpg")


def test_several_files_are_a_table_that_sorts_and_can_be_saved(
    browser: Any, served: Served, files: dict[str, Path], tmp_path: Path
) -> None:
    random = np.random.default_rng(11)
    several = []
    for name in NAMES:
        rough = random.integers(0, 255, (3, 4, 3), dtype=np.uint8)
        picture = cv2.resize(rough, (64, 48), interpolation=cv2.INTER_CUBIC)
        several.append({"name": name, "mimeType": "image/jpeg", "buffer": cv2.imencode(".jpg", picture)[1].tobytes()})
    broken = [{"name": name, "mimeType": "", "buffer": files[name].read_bytes()} for name in ("half.png", "empty.png")]
    with visiting(browser, served.url, accept_downloads=True) as visit:
        page = visit.page
        visit.choose(*several, *broken)
        visit.all_done()
        names = [*NAMES, "half.png", "empty.png"]
        assert page.locator("#rows button").all_inner_texts() == names
        assert "2 without answer" in visit.text("#tally")
        assert "The file is damaged, or it ends too early." in visit.text("#rows")
        page.click("#columns .of-name button")
        assert page.locator("#rows button").all_inner_texts()[-2:] == ["picture 9.jpg", "picture 10.jpg"]
        assert page.get_attribute("#columns .of-name", "aria-sort") == "ascending"
        page.focus("#columns .of-positive button")
        page.keyboard.press("Enter")
        assert page.get_attribute("#columns .of-positive", "aria-sort") == "descending"
        shares = [float(text.rstrip(" %")) for text in visit.texts("#rows .of-positive") if text]
        assert shares == sorted(shares, reverse=True) and len(shares) == len(NAMES)
        with page.expect_download() as saved:
            page.click("#csv")
        text = Path(saved.value.path()).read_bytes().decode("utf-8-sig")
        assert text.endswith("\r\n") and "\n" not in text.replace("\r\n", "")
        rows = {row["file"]: row for row in csv.DictReader(io.StringIO(text, newline=""))}
        assert set(rows) == {"'=1+1.jpg", *names[1:]}
        for name, one in zip(["'=1+1.jpg", *NAMES[1:]], several, strict=True):
            answer = asked(served, one["buffer"])
            row = rows[name]
            assert (row["decision"], row["content_sha256"]) == (answer["decision"], answer["content_sha256"])
            assert float(row["p of malignant"]) == answer["probabilities"]["malignant"]
        assert (rows["half.png"]["error_code"], rows["empty.png"]["error_code"]) == ("truncated", "empty")
        page.click("#rows button >> text=half.png")
        assert visit.verdict() == "No answer" and "too early" in visit.text(".verdict")
        page.click("#remove-all")
        assert page.is_visible("#empty") and not page.is_visible("#list")
        # No name of a file went anywhere.
        assert not [one for one in visit.asked if "picture" in one or "onerror" in one]


def test_of_two_hundred_named_pictures_nothing_is_kept(
    browser: Any, served: Served, place: Path, tmp_path: Path
) -> None:
    """The kernel tells what is written, whoever writes it; names and contents are looked for in what there is."""
    random, pictures = np.random.default_rng(3), []
    for number in range(200):
        pixels = random.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        # After the end of a PNG anything may stand: here what betrays the file wherever it lies.
        data = cv2.imencode(".png", pixels)[1].tobytes() + b"DOE^JANE^%03d" % number
        pictures.append(tmp_path / f"DOE_JANE_1952_{number:03d}.png")
        pictures[-1].write_bytes(data)
    processes = [served.process.pid, worker_of(served.process)]
    changes, written = Changes(place), bytes_written(processes)
    with visiting(browser, served.url) as visit:
        visit.choose(*pictures)
        visit.all_done()
        assert visit.text("#tally").startswith("200 pictures") and "without answer" not in visit.text("#tally")
        assert visit.page.context.storage_state() == {"cookies": [], "origins": []}
    answers = in_one_form(served, pictures[:64])
    assert [answer["content_sha256"] for answer in answers] == [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in pictures[:64]
    ]
    assert changes.seen() == set() and bytes_written(processes) == written
    changes.close()
    with urllib.request.urlopen(f"{served.url}metrics", timeout=30) as told:
        figures = told.read().decode()
    assert "nightread" in figures
    for text in (figures, served.log.read_text()):
        assert "JANE" not in text and answers[0]["content_sha256"][:12] not in text
    for path in place.rglob("*"):
        assert path.is_dir() or b"JANE" not in path.read_bytes()
    for process in processes:
        opened = [os.readlink(path) for path in Path(f"/proc/{process}/fd").iterdir()]
        assert [
            name for name in opened if name.startswith(("/tmp", "/var/tmp", "/dev/shm")) and "serve.log" not in name
        ] == []


def in_one_form(served: Served, paths: list[Path]) -> list[dict[str, Any]]:
    """Ask for several as a form does, with their names in it."""
    parts = [
        f'--frontier\r\nContent-Disposition: form-data; name="image"; filename="{path.name}"\r\n'
        "Content-Type: image/png\r\n\r\n".encode()
        + path.read_bytes()
        + b"\r\n"
        for path in paths
    ]
    headers = {"Content-Type": "multipart/form-data; boundary=frontier"}
    body = b"".join(parts) + b"--frontier--\r\n"
    request = urllib.request.Request(f"{served.url}predict/batch", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return list(json.load(answer)["answers"])


def test_everything_can_be_done_with_the_keyboard(browser: Any, served: Served, files: dict[str, Path]) -> None:
    with visiting(browser, served.url) as visit:
        page = visit.page
        dialogs: list[Any] = []
        page.on("filechooser", lambda dialog: dialogs.append(dialog))
        page.wait_for_selector("#about:not([hidden])")

        def focused() -> str:
            return str(page.evaluate("document.activeElement.id || document.activeElement.textContent"))

        page.keyboard.press("Tab")
        assert focused() == "Skip to the pictures"
        page.keyboard.press("Tab")
        assert focused() == "choose"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        while not dialogs:
            page.wait_for_event("filechooser")
        dialogs[0].set_files([files["plain.jpg"], files["scan.tif"]])
        visit.all_done()
        order = []
        while "sort" not in str(page.evaluate("document.activeElement.className")):
            page.keyboard.press("Tab")
            order.append(focused())
            assert len(order) < 30
        wanted = ["later", "viewer", "zoom-out", "zoom-in", "zoom-fit", "zoom-one", "remove", "csv", "remove-all"]
        assert [name for name in order if name in wanted] == wanted
        said = page.locator("#said").inner_text()
        assert said.startswith("All done. 2 pictures")
        page.locator("#rows button").nth(1).focus()
        page.keyboard.press("Enter")
        assert visit.text("#file-name") == "scan.tif"
        assert page.locator("#said").inner_text().startswith("scan.tif: ")
        assert page.locator("#rows [aria-current]").inner_text() == "scan.tif"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_every_width_in_both_schemes(
    browser: Any, served: Served, files: dict[str, Path], scheme: str
) -> None:
    with visiting(browser, served.url, color_scheme=scheme, reduced_motion="reduce") as visit:
        page = visit.page
        long = {"name": f"{'a very long name ' * 12}.jpg", "mimeType": "", "buffer": files["plain.jpg"].read_bytes()}
        visit.choose(long, {"name": "notes.jpg", "mimeType": "", "buffer": files["notes.jpg"].read_bytes()})
        visit.all_done()
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert page.locator("#answer .verdict").bounding_box()["width"] > 250
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 25, 29)")


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


def test_the_pages_numbers_sentences_and_tables_for_spreadsheets(browser: Any) -> None:
    """Functions of the page's own scripts, in a page without a policy, where a test may call them."""
    from importlib.resources import files as resources

    page = browser.new_page()
    sources = resources("pipelines.serving") / "page"
    page.add_script_tag(content="".join((sources / name).read_text() for name in SCRIPTS if name != "main.js"))

    def of(expression: str, *arguments: Any) -> Any:
        return page.evaluate(f"given => ({expression})(...given)", list(arguments))

    def plain(text: Any) -> Any:
        return text.replace("\u00a0", " ") if isinstance(text, str) else [one.replace("\u00a0", " ") for one in text]

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
    page.close()
