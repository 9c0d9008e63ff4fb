from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipelines.demo.archive import CLASSES, draw_archive
from pipelines.demo.tissue import draw_field, field_of_grade
from pipelines.errors import UsageError

SMALL = {"labelled": 8, "archive": 10}


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_same_seed_draws_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        draw_archive(tmp_path / name, seed, **SMALL)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert digests(tmp_path / "a") != digests(tmp_path / "c")


def test_what_lies_in_the_folder(tmp_path: Path) -> None:
    counted: list[tuple[int, int]] = []
    drawn = draw_archive(tmp_path / "demo", 0, **SMALL, on_count=lambda done, total: counted.append((done, total)))
    assert counted[-1] == (18, 18)
    assert sorted(path.name for path in drawn.labelled.iterdir()) == list(CLASSES)
    with drawn.labels.open(encoding="utf-8") as lines:
        answers = {row["uri"]: row["label"] for row in csv.DictReader(lines)}
    assert len(answers) == 10 + 5
    for uri in answers:
        pixels = cv2.imdecode(np.frombuffer((drawn.folder / uri).read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        assert pixels is not None, uri
    assert len(drawn.broken) == 3
    assert not set(drawn.broken) & set(answers)
    names = [path.relative_to(drawn.folder).as_posix() for path in drawn.archive.rglob("*")]
    assert any(" " in name for name in names)
    assert any("é" in name for name in names)
    assert any(name.endswith(".txt") for name in names)


def test_an_own_folder_is_used_again_and_a_half_drawn_one_afresh(tmp_path: Path) -> None:
    first = draw_archive(tmp_path, 3, **SMALL)
    before = digests(tmp_path)
    assert draw_archive(tmp_path, 3, **SMALL) == first
    record = json.loads((tmp_path / "demo.json").read_text())
    (tmp_path / "demo.json").write_text(json.dumps({**record, "drawn": False}))
    next(first.archive.rglob("*.jpg")).unlink()
    draw_archive(tmp_path, 3, **SMALL)
    assert digests(tmp_path) == before
    with pytest.raises(UsageError, match="seed 3"):
        draw_archive(tmp_path, 4, **SMALL)


@pytest.mark.parametrize("name", ["notes.txt", "demo.json"])
def test_somebody_elses_folder_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError):
        draw_archive(tmp_path, **SMALL)
    assert (tmp_path / name).read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_is_no_folder_for_a_demo(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    for place in (tmp_path / "x", tmp_path / "x" / "y"):
        with pytest.raises(UsageError):
            draw_archive(place, **SMALL)


def test_a_higher_grade_means_more_and_darker_nuclei() -> None:
    def darkness(grade: float) -> float:
        rng = np.random.default_rng(0)
        images = [draw_field(field_of_grade(grade, 160, 120, rng), rng) for _ in range(8)]
        assert images[0].shape == (120, 160, 3)
        assert images[0].dtype == np.uint8
        return float(np.mean([(image[..., 0] < 130).mean() for image in images]))

    assert darkness(-2) < darkness(0) < darkness(2)
