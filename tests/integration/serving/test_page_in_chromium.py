"""The upload page in a real browser, against `nightread serve` as a user starts it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from served_pages import Changes, Served, bytes_written, serving, visiting, worker_of

from pipelines.images.decode import decode

TOKEN = "0123456789abcdef-of-the-test"
WIDTHS = (320, 360, 768, 1280, 1920)


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
        page.wait_for_selector("#viewer.movable")
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
