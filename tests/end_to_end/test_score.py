"""`nightread score` as its users start it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

KEYS = {
    "run_id",
    "resumed",
    "found",
    "new",
    "changed",
    "unchanged",
    "scored",
    "failed",
    "failed_by_code",
    "images_per_second",
    "seconds",
    "table_version",
    "results",
    "exit_code",
}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path, nightread: Callable, draw: Callable) -> dict:
    """An archive with all that a folder holds, scored once."""
    home = tmp_path_factory.mktemp("scored")
    archive, results = home / "archive", home / "results"
    paths = draw(archive / "2024" / "März und später", 40) + draw(archive, 20, start=40)
    (archive / "notes.txt").write_text("not an image")
    (archive / ".hidden.jpg").write_bytes(paths[0].read_bytes())
    (archive / "@eaDir").mkdir()
    shutil.copy(paths[0], archive / "@eaDir" / "thumb.jpg")
    (archive / "broken.jpg").write_bytes(paths[0].read_bytes()[:900])
    (archive / "text.png").write_text("this is no picture")
    (archive / "empty.jpg").write_bytes(b"")
    back = archive / "back\\slash.jpg"
    shutil.copy(paths[5], back)
    arguments = ["score", archive, "--model", f"{tiny_models}/cells", "--results", results]
    done = nightread(*arguments, "--list", "--shard-size", 16)
    return {"archive": archive, "results": results, "paths": paths, "done": done, "arguments": arguments}


def test_every_image_has_one_row(scored: dict, rows_of: Callable) -> None:
    assert scored["done"].code == 3, scored["done"].err
    rows = {row["image_uri"]: row for row in rows_of(scored["results"])}
    archive = scored["archive"]
    expected = {str(path) for path in scored["paths"]}
    expected |= {str(archive / name) for name in ("broken.jpg", "text.png", "empty.jpg", "back\\\\slash.jpg")}
    assert rows.keys() == expected
    codes = Counter(row["error_code"] for row in rows.values())
    assert codes == {None: 61, "truncated": 1, "not_an_image": 2}
    run_ids = {row["run_id"] for row in rows.values()}
    assert len(run_ids) == 1


def test_what_it_prints(scored: dict) -> None:
    out = scored["done"].out
    assert "64 images: 64 new, 0 changed, 0 unchanged" in out
    assert "exit code 3" in out and "nightread query" in out
    assert "broken.jpg => failed: truncated" in out
    listed = [line for line in out.splitlines() if " => " in line]
    assert len(listed) == 64
    assert any(line.startswith("2024/März und später/b00000.jpg => ") for line in listed)


def test_rows_agree_with_an_independent_computation(scored: dict, tiny_models: Path, rows_of: Callable) -> None:
    """Decode with Pillow, resize with OpenCV, run LiteRT by hand: the same probabilities to 1e-2."""
    import cv2
    from ai_edge_litert.interpreter import Interpreter
    from PIL import Image

    bundle = next((tiny_models / "cells").glob("v*/scorer.tflite"))
    interpreter = Interpreter(model_path=str(bundle), num_threads=1)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    rows = {row["image_uri"]: row for row in rows_of(scored["results"])}
    for path in scored["paths"][:20]:
        pixels = cv2.resize(np.asarray(Image.open(path).convert("RGB")), (96, 96), interpolation=cv2.INTER_AREA)
        interpreter.set_tensor(source, pixels[np.newaxis])
        interpreter.invoke()
        probabilities = interpreter.get_tensor(target)[0]
        row = rows[str(path)]
        assert [row["p_benign"], row["p_malignant"]] == pytest.approx(probabilities.tolist(), abs=1e-2)
        assert row["score"] == max(row["p_benign"], row["p_malignant"])
        assert row["p_positive"] == row["p_malignant"]
        assert row["decision"] == ("positive" if row["p_positive"] >= 0.5 else "negative")
        assert (row["width"], row["height"], row["frame"], row["frames"]) == (160, 120, 0, 1)
        assert row["in_training_set"] is None  # this bundle does not say what it was trained on
        assert abs(row["mean_intensity"] - np.asarray(Image.open(path).convert("L")).mean() / 255) < 0.02


def test_the_record_says_what_the_rows_mean_without_the_bundle(scored: dict) -> None:
    record = json.loads(next((scored["results"] / "runs").glob("*/run.json")).read_text())
    assert record["model"] == {
        "classes": ["benign", "malignant"],
        "positive_classes": ["malignant"],
        "thresholds": {"image": {"threshold": 0.5, "target_sensitivity": 0.95}},
    }


def test_the_morning_after_says_where_the_time_went(scored: dict, nightread: Callable) -> None:
    page = scored["results"].parent / "night.html"
    shown = nightread("runs", "show", scored["results"], "--html", page, "--json").answer
    assert shown["state"] == "committed" and shown["progress"] is None
    timings, failed = shown["timings"], shown["failure_examples"]
    assert {code: len(examples) for code, examples in failed.items()} == {"not_an_image": 2, "truncated": 1}
    assert failed["truncated"][0]["image_uri"] == str(scored["archive"] / "broken.jpg")
    # Cores are busy no longer than they are held, and the driver's phases make up its time.
    busy, held = sum(timings["stages"].values()), timings["cores"] * timings["scoring_seconds"]
    assert 0 < busy <= held and timings["stages"]["decode"] > 0 and timings["stages"]["score"] > 0
    phases = [timings[f"{phase}_seconds"] for phase in ("starting", "scoring", "committing")]
    assert min(phases) >= 0 and sum(phases) <= timings["seconds"]
    whole = timings["seconds"] + timings["listing_seconds"] + timings["planning_seconds"]
    assert timings["node_hours"] == pytest.approx(whole / 3600) and timings["nodes"] == 1
    assert timings["core_hours"] == pytest.approx(busy / 3600, abs=0.005 / 3600) and timings["images_before"] == 0
    points = [(0.0, 0.0), *map(tuple, timings["rate_over_time"])]
    images = sum((end - start) * rate for (start, _), (end, rate) in itertools.pairwise(points))
    assert images == pytest.approx(64, rel=0.02)
    slowest = shown["slowest_images"]
    assert len(slowest) == 12 and all(Path(one["image_uri"].replace("\\\\", "\\")).exists() for one in slowest)
    assert [one["seconds"] for one in slowest] == sorted((one["seconds"] for one in slowest), reverse=True)
    assert page.read_text().startswith("<!DOCTYPE html>") and "broken.jpg" in page.read_text()


def test_a_second_night_finds_nothing_and_starts_no_ray(scored: dict, nightread: Callable) -> None:
    done = nightread(*scored["arguments"], "--json", env={"RAY_ADDRESS": "256.256.256.256:1"})
    assert done.code == 0, done.err
    answer = done.answer
    assert answer.keys() >= KEYS
    assert (answer["found"], answer["new"], answer["changed"], answer["unchanged"]) == (64, 0, 0, 64)
    assert answer["run_id"] is None and answer["images_per_second"] is None


def test_dry_run_writes_nothing(scored: dict, tiny_models: Path, nightread: Callable) -> None:
    before = sorted((str(path), path.stat().st_mtime_ns) for path in scored["results"].rglob("*"))
    arguments = ["score", scored["archive"], "--model", f"{tiny_models}/other", "--results", scored["results"]]
    done = nightread(*arguments, "--dry-run", "--json")
    assert done.code == 0, done.err
    assert (done.answer["new"], done.answer["planned"], done.answer["scored"]) == (64, 64, 0)
    assert done.answer["dry_run"] is True
    assert sorted((str(path), path.stat().st_mtime_ns) for path in scored["results"].rglob("*")) == before


def test_limit_rescore_and_another_model(
    tmp_path: Path, tiny_models: Path, nightread: Callable, draw: Callable, rows_of: Callable
) -> None:
    archive, results = tmp_path / "archive", tmp_path / "results"
    draw(archive, 12)
    base = ["score", archive, "--results", results, "--json", "--model"]
    first = nightread(*base, f"{tiny_models}/cells", "--limit", 5)
    assert (first.code, first.answer["new"], first.answer["scored"]) == (0, 12, 5)
    second = nightread(*base, f"{tiny_models}/cells", "--rescore")
    assert (second.code, second.answer["unchanged"], second.answer["scored"]) == (0, 5, 12)
    third = nightread(*base, f"{tiny_models}/other")
    assert (third.code, third.answer["new"], third.answer["scored"]) == (0, 12, 12)
    assert len(rows_of(results)) == 29
    latest = nightread("query", results, "SELECT model_name, count(*) AS n FROM latest GROUP BY 1 ORDER BY 1", "--json")
    assert latest.answer == [{"model_name": "cells", "n": 12}, {"model_name": "other", "n": 12}]


def test_manifest_with_columns(
    tmp_path: Path, tiny_models: Path, nightread: Callable, draw: Callable, rows_of: Callable
) -> None:
    paths = draw(tmp_path / "images", 6)
    manifest = tmp_path / "list.csv"
    lines = [f"images/{path.name};007{number};north" for number, path in enumerate(paths)]
    lines.append("images/gone.jpg;0099;south")
    manifest.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(["path;mrn;site", *lines, ""]).encode())
    done = nightread(
        *["score", manifest, "--model", f"{tiny_models}/cells", "--results", tmp_path / "results", "--json"],
        *["--columns", "uri=path,patient_id=mrn", "--fail-threshold", "1"],
    )
    assert done.code == 0, done.err
    rows = {row["image_uri"]: row for row in rows_of(tmp_path / "results")}
    assert rows.keys() == {str(path) for path in paths} | {str(tmp_path / "images" / "gone.jpg")}
    assert rows[str(paths[3])]["patient_id"] == "0073" and rows[str(paths[3])]["site"] == "north"
    assert rows[str(tmp_path / "images" / "gone.jpg")]["error_code"] == "not_found"


def one_sentence(err: str) -> bool:
    """Whether an error is told and not thrown."""
    return err.startswith("error: ") and "Traceback" not in err and len(err.strip().splitlines()) <= 3


def test_broken_input(tmp_path: Path, tiny_models: Path, nightread: Callable, draw: Callable) -> None:
    model = ["--model", f"{tiny_models}/cells", "--results", tmp_path / "results"]
    empty = tmp_path / "empty"
    empty.mkdir()
    done = nightread("score", empty, *model)
    assert done.code == 75 and one_sentence(done.err) and "--allow-empty" in done.err
    assert nightread("score", empty, *model, "--allow-empty").code == 0

    (empty / "a.dcm").write_bytes(b"DICM")
    (empty / "b.dcm").write_bytes(b"DICM")
    done = nightread("score", empty, *model)
    assert done.code == 2 and one_sentence(done.err) and "dcm (2)" in done.err

    done = nightread("score", tmp_path / "nowhere", *model)
    assert done.code == 2 and one_sentence(done.err)

    manifest = tmp_path / "list.csv"
    manifest.write_text("path,label\na.jpg,1\n")
    done = nightread("score", manifest, *model)
    assert done.code == 2 and one_sentence(done.err) and "path" in done.err and "label" in done.err

    draw(tmp_path / "archive", 3)
    done = nightread("score", tmp_path / "archive", *model, "--precision", "float16")
    assert done.code == 2 and one_sentence(done.err) and "float32" in done.err and "int8" in done.err
    done = nightread("score", tmp_path / "archive", *model, "--json", "--actors", "many")
    assert done.code == 2 and json.loads(done.out)["exit_code"] == 2


def test_a_model_altered_by_one_byte(tmp_path: Path, tiny_models: Path, nightread: Callable, draw: Callable) -> None:
    models = tmp_path / "models"
    shutil.copytree(tiny_models, models)
    scorer = next((models / "cells").glob("v*/scorer.tflite"))
    data = bytearray(scorer.read_bytes())
    data[len(data) // 2] ^= 1
    scorer.write_bytes(bytes(data))
    draw(tmp_path / "archive", 3)
    done = nightread("score", tmp_path / "archive", "--model", models / "cells", "--results", tmp_path / "results")
    assert done.code == 4 and one_sentence(done.err)
    assert not (tmp_path / "results").exists()


def test_a_model_that_fails_its_self_test(
    tmp_path: Path, tiny_models: Path, nightread: Callable, draw: Callable
) -> None:
    """A bundle whose golden answers are another model's: every hash is right, the answers are not."""
    from pipelines.models.bundle import load_bundle, write_bundle
    from pipelines.models.golden import GOLDEN_FILE

    cells, other = (load_bundle(str(next((tiny_models / name).glob("v*")))) for name in ("cells", "other"))
    files = {"scorer.tflite": cells.read("scorer.tflite"), GOLDEN_FILE: other.read(GOLDEN_FILE)}
    write_bundle(str(tmp_path / "models"), "mixed", cells.spec, files)
    draw(tmp_path / "archive", 3)
    model = ["--model", tmp_path / "models" / "mixed", "--results", tmp_path / "results"]
    done = nightread("score", tmp_path / "archive", *model)
    assert done.code == 4 and one_sentence(done.err)
    assert nightread("query", tmp_path / "results", "SELECT * FROM rows", "--json").answer == []


def test_damaged_parts_and_a_lost_plan_are_made_anew(
    tmp_path: Path,
    tiny_models: Path,
    environment: dict[str, str],
    shared_ray: Callable[[], dict[str, str]],
    nightread: Callable,
    draw: Callable,
    rows_of: Callable,
) -> None:
    """A power cut: a run with its parts on disk, some of them empty; then one whose plan is gone."""
    archive, results = tmp_path / "archive", tmp_path / "results"
    paths = draw(archive, 200)
    arguments = ["score", str(archive), "--model", f"{tiny_models}/cells", "--results", str(results), "--json"]
    arguments += ["--shard-size", "5"]

    def interrupted(parts: int) -> Path:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs", *arguments],
            env={**environment, **shared_ray()},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and len(list(results.glob("runs/*/parts/*.parquet"))) < parts:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return next(results.glob("runs/*/parts")).parent

    run = interrupted(20)
    for part in sorted((run / "parts").glob("*.parquet"))[:5]:
        part.write_bytes(b"")
    done = nightread(*arguments)
    assert (done.code, done.answer["scored"]) == (0, 200), done.err
    assert Counter(row["image_uri"] for row in rows_of(results)) == {str(path): 1 for path in paths}
    shutil.rmtree(results)
    (interrupted(3) / "plan.parquet").unlink()
    done = nightread(*arguments)
    assert (done.code, done.answer["resumed"], done.answer["scored"]) == (0, None, 200), done.err
    assert Counter(row["image_uri"] for row in rows_of(results)) == {str(path): 1 for path in paths}
