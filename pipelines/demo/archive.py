"""Draw the demo's folder: a labelled part to learn from, an archive to score, and the answers.

```
DIR/demo.json            what this folder is; `"drawn": true` is written last
DIR/labelled/<class>/…   images to train on
DIR/archive/…            images to score, in sub-folders, a few of them broken on purpose
DIR/labels.csv           uri,label of every readable image of the archive; relative to DIR
```
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipelines.demo.tissue import draw_field, draw_grade, field_of_grade
from pipelines.errors import UsageError

CLASSES = ("benign", "malignant")
MARKER = "demo.json"
FORMAT = 1
LABELLED_IMAGES = 240
ARCHIVE_IMAGES = 300

_SIZES = ((240, 180), (288, 216), (320, 240), (360, 360), (400, 300), (640, 480), (1024, 768))
_SIZE_SHARES = (0.22, 0.22, 0.22, 0.12, 0.12, 0.07, 0.03)
_WARDS = ("ward 1", "ward 2/night shift", "Gewebe Süd/Färbung 3", "été/lames n° 4", "outpatients")


@dataclass(frozen=True)
class DemoArchive:
    """Where the drawn images lie.

    Attributes:
        folder: The demo's folder, absolute.
        labelled: A folder per class.
        archive: The images to score.
        labels: CSV `uri,label` of the archive's readable images, relative to `folder`.
        broken: Files of the archive that cannot be read, relative to `folder`.
    """

    folder: Path
    labelled: Path
    archive: Path
    labels: Path
    broken: tuple[str, ...]


def draw_archive(
    folder: str | Path,
    seed: int = 0,
    *,
    labelled: int = LABELLED_IMAGES,
    archive: int = ARCHIVE_IMAGES,
    on_count: Callable[[int, int], None] | None = None,
) -> DemoArchive:
    """Draw the demo's images, or find them drawn already.

    Args:
        folder: An empty or absent folder, or one that an earlier call made (then nothing is drawn again).
        seed: The same seed gives the same bytes.
        labelled: How many images to train on, half of each class.
        archive: How many readable images to score.
        on_count: Called with (images drawn, images in all).

    Returns:
        Where everything lies.

    Raises:
        UsageError: If the folder holds something else, or cannot be written.
    """
    home = Path(folder).absolute()
    wanted = {"format": FORMAT, "seed": seed, "labelled": labelled, "archive": archive}
    try:
        marker = _read_marker(home)
        if marker.get("drawn") and all(marker.get(key) == value for key, value in wanted.items()):
            return _layout(home, tuple(str(name) for name in marker["broken"]))
        if marker.get("drawn"):
            raise UsageError(
                f"{home} holds a demo that was drawn with other settings (seed {marker.get('seed')}).",
                "Use that seed, or name another folder.",
            )
        return _draw_all(home, wanted, on_count)
    except OSError as error:
        raise UsageError(f"{home} cannot be written: {error.strerror}.", "Name a folder that you may write.") from error


def _read_marker(home: Path) -> dict[str, Any]:
    """The folder's own record; empty where there is nothing yet."""
    if not home.exists():
        return {}
    if not home.is_dir():
        raise UsageError(f"{home} is not a folder.", "Name a folder for the demo.")
    marker = home / MARKER
    if not marker.exists():
        if any(home.iterdir()):
            raise UsageError(f"{home} is not empty and holds no demo.", "Name an empty or new folder.")
        return {}
    try:
        record = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError:
        record = None
    if not isinstance(record, dict) or record.get("nightread") != "demo":
        raise UsageError(f"{marker} was not written by this program.", "Name an empty or new folder.")
    if int(record.get("format", 0)) > FORMAT:
        raise UsageError(f"{home} was drawn by a newer release (format {record['format']}).", "Name a new folder.")
    return record


def _layout(home: Path, broken: tuple[str, ...]) -> DemoArchive:
    return DemoArchive(home, home / "labelled", home / "archive", home / "labels.csv", broken)


def _draw_all(home: Path, wanted: dict[str, int], on_count: Callable[[int, int], None] | None) -> DemoArchive:
    home.mkdir(parents=True, exist_ok=True)
    # The record comes first, so that a folder left half drawn is known as ours and drawn afresh.
    _write_marker(home, {**wanted, "drawn": False})
    for part in ("labelled", "archive"):
        shutil.rmtree(home / part, ignore_errors=True)
    seed, labelled, archive = wanted["seed"], wanted["labelled"], wanted["archive"]
    for index in range(labelled):
        _draw_labelled(home, seed, index)
        if on_count:
            on_count(index + 1, labelled + archive)
    answers = []
    for index in range(archive):
        answers.append(_draw_archived(home, seed, index))
        if on_count:
            on_count(labelled + index + 1, labelled + archive)
    answers += _add_copies(home, labelled)
    broken = _add_broken(home)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([("uri", "label"), *sorted(answers)])
    (home / "labels.csv").write_text(table.getvalue(), encoding="utf-8")
    _write_marker(home, {**wanted, "drawn": True, "broken": list(broken)})
    return _layout(home, broken)


def _write_marker(home: Path, record: dict[str, object]) -> None:
    text = json.dumps({"nightread": "demo", **record}, indent=1, ensure_ascii=False)
    (home / MARKER).write_text(text + "\n", encoding="utf-8")


def _encoded(malignant: bool, suffix: str, rng: np.random.Generator) -> bytes:
    """One image file of a class, its size drawn from `_SIZES`."""
    width, height = _SIZES[rng.choice(len(_SIZES), p=_SIZE_SHARES)]
    pixels = draw_field(field_of_grade(draw_grade(malignant, rng), width, height, rng), rng)
    if suffix.lower() == ".png":
        options = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    else:
        options = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(80, 96))]
    done, data = cv2.imencode(suffix.lower(), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise RuntimeError(f"OpenCV could not encode a {suffix} image")
    return data.tobytes()


def _labelled_path(home: Path, index: int) -> Path:
    label = CLASSES[index % 2]
    suffix = ".png" if index % 9 == 4 else ".jpg"
    return home / "labelled" / label / f"{label[0]}{index // 2:03d}{suffix}"


def _draw_labelled(home: Path, seed: int, index: int) -> None:
    path = _labelled_path(home, index)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_encoded(index % 2 == 1, path.suffix, np.random.default_rng([seed, 1, index])))


def _draw_archived(home: Path, seed: int, index: int) -> tuple[str, str]:
    """Draw one image of the archive; the name says nothing about the class."""
    rng = np.random.default_rng([seed, 2, index])
    malignant = bool(rng.random() < 0.4)
    suffix = str(rng.choice([".jpg", ".JPG", ".jpeg", ".png"], p=[0.6, 0.15, 0.15, 0.1]))
    name = f"slide {index:04d}{' détail' if index % 7 == 3 else ''}{suffix}"
    path = home / "archive" / _WARDS[index % len(_WARDS)] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_encoded(malignant, suffix, rng))
    return path.relative_to(home).as_posix(), CLASSES[malignant]


def _add_copies(home: Path, labelled: int) -> list[tuple[str, str]]:
    """Some images of the labelled part turn up in the archive again: `in_training_set` will say so."""
    answers = []
    for index in range(min(5, labelled)):
        source = _labelled_path(home, index)
        target = home / "archive" / "outpatients" / f"second opinion {index + 1}{source.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        answers.append((target.relative_to(home).as_posix(), CLASSES[index % 2]))
    return answers


def _add_broken(home: Path) -> tuple[str, ...]:
    """Three files that no decoder can read, and two that are no images at all and are left out."""
    whole = next(path for path in sorted((home / "archive").rglob("*.jpg"))).read_bytes()
    broken = {
        "archive/ward 1/scan aborted.jpg": whole[: len(whole) // 2],
        "archive/ward 2/night shift/printer error.jpg": b"PC LOAD LETTER\n" * 20,
        "archive/outpatients/empty.png": b"",
    }
    left_out = {
        "archive/ward 1/notes.txt": b"Slides of ward 1, stained on Monday.\n",
        "archive/outpatients/Thumbs.db": b"\xd0\xcf\x11\xe0" + bytes(60),
    }
    for name, data in {**broken, **left_out}.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tuple(sorted(broken))
