"""Which images a gallery shows, held against the rule written out; what has gone or changed is passed over."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.evaluation.cases import Cases
from pipelines.evaluation.content import Gallery
from pipelines.evaluation.gallery import make_gallery
from pipelines.models.bundle import SCORER_FILE, Bundle
from pipelines.models.record import BundleSpec

CLASSES = ("benign", "malignant", "normal")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Forty small files, each of another colour."""
    folder = tmp_path_factory.mktemp("images")
    files = []
    for number in range(40):
        path = folder / "ward" / f"image {number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (12, 9), (6 * number, 250 - 6 * number, 40)).save(path)
        files.append(path)
    return files


def cases_of(files: list[Path], labels: list[int], probabilities: np.ndarray) -> Cases:
    count = len(files)
    return Cases(
        classes=CLASSES,
        positive=(1,),
        uris=tuple(map(str, files)),
        contents=tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in files),
        labels=np.array(labels, np.int64),
        probabilities=probabilities.astype(np.float32),
        groups=tuple(map(str, range(count))),
        patients=None,
        mean_intensity=np.full(count, np.nan),
    )


def random_cases(files: list[Path], seed: int, steps: int = 6) -> Cases:
    """Answers on a coarse grid, so that there are ties."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(1, steps, (len(files), 3)).astype(float)
    return cases_of(files, rng.integers(0, 3, len(files)).tolist(), drawn / drawn.sum(axis=1, keepdims=True))


def by_name(cases: Cases, root: Path) -> dict[str, int]:
    return {str(Path(uri).relative_to(root)): row for row, uri in enumerate(cases.uris)}


@given(seed=st.integers(0, 10_000), count=st.integers(0, 15), few=st.integers(1, 40))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_worst_and_the_surest_are_shown(images: list[Path], seed: int, count: int, few: int) -> None:
    root = images[0].parents[1]
    cases = random_cases(images[:few], seed)
    gallery = make_gallery(cases, None, str(root), count)
    rows = by_name(cases, root)
    order = sorted(range(few), key=lambda row: (-float(cases.probabilities[row].max()), cases.contents[row]))
    wrong = [row for row in order if cases.predicted[row] != cases.labels[row]]
    assert gallery.wrong_in_all == len(wrong)
    assert [rows[one.name] for one in gallery.wrong] == wrong[:count]
    # Of the right ones each class has the same number, but for the last round and where it has no more.
    right = {label: [row for row in order if cases.predicted[row] == cases.labels[row] == label] for label in range(3)}
    taken: list[int] = []
    for turn in range(few):
        taken += [right[label][turn] for label in range(3) if turn < len(right[label])]
    assert Counter(rows[one.name] for one in gallery.right) == Counter(taken[:count])
    surest = [one.probability for one in gallery.right]
    assert surest == sorted(surest, reverse=True)


def test_what_is_said_of_an_image(images: list[Path]) -> None:
    cases = cases_of(images[:2], [0, 1], np.array([[0.1, 0.7, 0.2], [0.2, 0.5, 0.3]]))
    gallery = make_gallery(cases, None, str(images[0].parents[1]))
    (wrong,), (right,) = gallery.wrong, gallery.right
    assert (wrong.name, wrong.true, wrong.predicted) == ("ward/image 00.png", "benign", "malignant")
    assert wrong.probability == pytest.approx(0.7) and wrong.p_positive == pytest.approx(0.7)
    assert (right.name, right.true, right.predicted) == ("ward/image 01.png", "malignant", "malignant")
    for number, one in enumerate((wrong, right)):
        with Image.open(io.BytesIO(one.picture)) as picture:
            assert picture.size == (224, 168)
            np.testing.assert_allclose(np.asarray(picture)[80, 100], (6 * number, 250 - 6 * number, 40), atol=8)
    assert wrong.overlay is None and "only its answers were given" in gallery.overlay_absent


def names(gallery: Gallery) -> list[str]:
    return [one.name for one in (*gallery.wrong, *gallery.right)]


@pytest.mark.parametrize("root", [None, "/elsewhere"])
def test_no_path_outside_the_root_is_told(images: list[Path], root: str | None) -> None:
    cases = random_cases(images[:9], 1)
    assert sorted(names(make_gallery(cases, None, root))) == sorted(content[:12] for content in cases.contents)


def test_what_has_gone_or_changed_is_passed_over(images: list[Path], tmp_path: Path) -> None:
    files = [tmp_path / path.name for path in images]
    for old, new in zip(images, files, strict=True):
        new.write_bytes(old.read_bytes())
    cases = random_cases(files, 2)
    before = make_gallery(cases, None, str(tmp_path), 5)
    (tmp_path / before.wrong[0].name).unlink()
    (tmp_path / before.wrong[2].name).write_bytes(images[0].read_bytes() + b"-")
    (tmp_path / before.right[1].name).write_bytes(b"")
    after = make_gallery(cases, None, str(tmp_path), 5)
    more = make_gallery(random_cases(images, 2), None, str(images[0].parent), 7)
    gone = {before.wrong[0].name, before.wrong[2].name}
    assert [one.name for one in after.wrong] == [one.name for one in more.wrong if one.name not in gone]
    assert len(after.right) == 5 and before.right[1].name not in names(after)
    assert after.wrong_in_all == before.wrong_in_all


def test_a_content_is_shown_once(images: list[Path], tmp_path: Path) -> None:
    copies = [tmp_path / f"{number}.png" for number in range(4)]
    for copy in copies:
        copy.write_bytes(images[5].read_bytes())
    cases = cases_of([*copies, images[6]], [0] * 5, np.tile([0.1, 0.7, 0.2], (5, 1)))
    gallery = make_gallery(cases, None, None)
    assert (len(gallery.wrong), gallery.wrong_in_all) == (2, 5)


def test_a_share_that_is_gone_is_not_asked_for_every_image(images: list[Path], tmp_path: Path) -> None:
    lost = [tmp_path / f"lost {number}.png" for number in range(300)]
    cases = cases_of(images[:1] * 300, [0] * 300, np.tile([0.1, 0.7, 0.2], (300, 1)))
    contents = tuple(hashlib.sha256(str(path).encode()).hexdigest() for path in lost)
    gone = Cases(**{**vars(cases), "uris": tuple(map(str, lost)), "contents": contents})
    assert names(make_gallery(gone, None, None)) == []


def test_why_there_are_no_heat_maps(images: list[Path]) -> None:
    def bundle(*classes: str) -> Bundle:
        spec = BundleSpec(classes, classes[1:2], 64, "0" * 64, {})
        return Bundle("/models/bought/v2", "bought", "v2", "0" * 64, spec, {SCORER_FILE: "0" * 64})

    cases = random_cases(images[:6], 3)
    assert "bought@v2 was imported" in make_gallery(cases, bundle(*CLASSES), None).overlay_absent
    gallery = make_gallery(cases, bundle("a", "b"), None)
    assert "other classes" in gallery.overlay_absent
    assert all(one.overlay is None for one in (*gallery.wrong, *gallery.right))
