"""The night that a command leaves, whatever its end; and that it hides nothing of that end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.console import Console
from jobs.night_record import night_recorded
from pipelines.errors import LeaseLost, ModelRefused, Stopped, TryLater, UsageError
from pipelines.predictions.nights import newest_nights
from pipelines.scoring.config import ScoreConfig


@pytest.fixture
def config(tmp_path: Path) -> ScoreConfig:
    """A command whose results hold a table, as far as a night looks."""
    (tmp_path / "results" / "predictions").mkdir(parents=True)
    return ScoreConfig(archive="/mnt/pacs", model="/models/chest", results=str(tmp_path / "results"), who={"user": "u"})


@pytest.mark.parametrize("code", [0, 3, 5])
def test_an_answer_is_kept(config: ScoreConfig, code: int) -> None:
    with night_recorded(config, Console()) as ending:
        drift = {"verdict": "drift", "figures": [{"figure": "suffix", "psi": 0.3, "shares": {".png": 1.0}}], "more": 1}
        ending.answer = {"exit_code": code, "runs": ["r"], "scored": 7, "drift": drift, "results": "…"}
    (night,) = newest_nights(config.results, 2)
    assert (night.exit_code, night.error, night.runs, dict(night.counts)) == (code, None, ("r",), {"scored": 7})
    assert (night.archive, night.finished) == ("/mnt/pacs", True)
    assert night.drift is not None and night.drift["verdict"] == "drift" and "more" not in night.drift
    assert [figure["psi"] for figure in night.drift["figures"]] == [0.3] and "shares" not in night.drift["figures"][0]


def test_a_night_names_the_model_so_that_it_is_found_from_everywhere(
    config: ScoreConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with night_recorded(replace(config, model="models/chest@v1"), Console()) as ending:
        ending.answer = {"exit_code": 0}
    assert newest_nights(config.results, 1)[0].model == f"{tmp_path}/models/chest@v1"


def _stopped_by(number: int) -> Stopped:
    stopped = Stopped("Stopped with 3 of 9 images scored and kept.")
    stopped.__cause__ = KeyboardInterrupt(number)
    return stopped


@pytest.mark.parametrize(
    ("error", "code", "name"),
    [
        (UsageError("Wrong.", "Mend it."), 2, "usage"),
        (ModelRefused("Altered.", "Restore it."), 4, "model_refused"),
        (TryLater("Busy.", "Wait."), 75, "try_later"),
        (LeaseLost("Taken.", "Wait."), 75, "lease_lost"),
        (KeyboardInterrupt(), 130, "stopped"),
        (KeyboardInterrupt(15), 143, "stopped"),
        (_stopped_by(2), 130, "stopped"),
        (_stopped_by(15), 143, "stopped"),
        (ZeroDivisionError("/mnt/pacs/anna.jpg"), 1, "defect"),
    ],
)
def test_every_end_leaves_its_night_and_goes_on(
    config: ScoreConfig, error: BaseException, code: int, name: str
) -> None:
    with pytest.raises(type(error)) as raised, night_recorded(config, Console()):
        raise error
    assert raised.value is error
    (night,) = newest_nights(config.results, 2)
    assert (night.exit_code, night.finished, night.counts) == (code, False, {})
    assert night.error is not None and night.error["code"] == name
    assert "anna" not in night.error["message"]


def test_a_night_that_cannot_be_written_hides_nothing(config: ScoreConfig, capsys: pytest.CaptureFixture[str]) -> None:
    (Path(config.results) / "nights").write_text("a file is in the way")
    with night_recorded(config, Console()) as ending:
        ending.answer = {"exit_code": 0}
    with pytest.raises(ModelRefused), night_recorded(config, Console()):
        raise ModelRefused("Altered.")
    assert capsys.readouterr().err.count("warning: This night is not written down") == 2


def test_metrics_are_left_whatever_the_end(config: ScoreConfig, tmp_path: Path) -> None:
    file = tmp_path / "nightread.prom"
    with night_recorded(config, Console(), str(file)) as ending:
        ending.answer = {"exit_code": 0, "scored": 7, "failed": 0}
    success = [line for line in file.read_text().splitlines() if line.startswith("nightread_last_success")]
    with pytest.raises(KeyboardInterrupt), night_recorded(config, Console(), str(file)):
        raise KeyboardInterrupt(15)
    lines = file.read_text().splitlines()
    assert f'nightread_last_exit_code{{results="{config.results}"}} 143' in lines
    assert success and set(success) < set(lines)
    with pytest.raises(UsageError, match="metrics-file"), night_recorded(config, Console(), str(tmp_path)):
        raise AssertionError("the night began all the same")


def test_a_dry_run_is_no_night(config: ScoreConfig) -> None:
    with night_recorded(replace(config, dry_run=True), Console()) as ending:
        ending.answer = {"exit_code": 0}
    assert not (Path(config.results) / "nights").exists()
