"""MODELS/<name>/searches/<id>/: which searches there are, and what search.json says of each."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from pipelines.errors import TryLater, UsageError
from pipelines.models.record import check_name, plain
from pipelines.predictions.runs import without_secrets
from pipelines.storage import files, paths
from pipelines.storage.listing import root_uri
from pipelines.tuning.config import TuneConfig

FORMAT = 1
RECORD_FILE = "search.json"

_SEARCHES = "searches"
_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_NUMBERED = re.compile(r"s([1-9][0-9]{0,8})")
_HASH = re.compile(r"[0-9a-f]{16,}")


@dataclass(frozen=True)
class Search:
    """What search.json says.

    Attributes:
        fingerprint: What its points are of, by name (`data`, `recipe`, `weights` and so on): a hash or a short text
            each. Points of one search have all of it in common.
        metric: By a name of `METRIC_NAMES`; decides the ranking.
        seed: Of every point.
        grid: Key to what of it is searched, in words; that of the last command.
        settings: What else it asked, as JSON values.
        newest: Number of the name's newest version when the search began; 0 for none. The split is its.
        split: A hash of which images train and validate; None before they were split.
        split_at: Input size of the network by whose pictures near-duplicates were told; None before.
        counts: Whole numbers by name, such as `points`, `trainings`, `finished` and `failed`.
        best: The best point, as JSON values; None before there is one.
        best_of: That of each backbone.
        sureness: How sure the ranking is, as JSON values; None where nothing was compared.
        registered: The version that the best point became, as JSON values; None before.
        tested: When the test part was looked at, ISO 8601, UTC; None before. From then on no point is added.
        seconds: Of all its commands together.
        feature_seconds: Of the passes over all images, by backbone.
        who: User, host, command line and versions.
        id: `s1`, `s2` and so on, or what `--search` said.
        folder: Where it lies; not in the file.
        started_at: ISO 8601, UTC, to the microsecond.
        claim: A random text, by which the one who created it knows that it did.
    """

    fingerprint: Mapping[str, str]
    metric: str
    seed: int
    grid: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    newest: int = 0
    split: str | None = None
    split_at: int | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    best: Mapping[str, Any] | None = None
    best_of: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sureness: Mapping[str, Any] | None = None
    registered: Mapping[str, Any] | None = None
    tested: str | None = None
    seconds: float = 0.0
    feature_seconds: Mapping[str, float] = field(default_factory=dict)
    who: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""
    folder: str = ""
    started_at: str = ""
    claim: str = ""

    def as_json(self) -> dict[str, Any]:
        """The record as JSON values; what is no number is null."""
        said: dict[str, Any] = plain({"format": FORMAT, "id": self.id, **asdict(self)})
        del said["folder"]
        return said


def check_search_id(text: str) -> str:
    """An id that is safe as a folder and as `--search`.

    Raises:
        UsageError: If it is not lower-case letters, digits, dot, dash and underscore.
    """
    if not _ID.fullmatch(text):
        raise UsageError(
            f"--search {text!r} cannot be a folder's name.",
            "Use lower-case letters, digits, '.', '-' and '_', a letter or digit first.",
        )
    return text


def search_folder(models: str, name: str, search_id: str) -> str:
    """Where a search lies.

    Args:
        models: The MODELS folder, local or in a bucket.
        name: The model's name.
        search_id: The search's.
    """
    return paths.join(_searches(models, name), check_search_id(search_id))


def find_search(models: str, name: str, fingerprint: Mapping[str, str], search_id: str | None) -> Search | None:
    """The search that a command continues.

    Args:
        models: The MODELS folder, local or in a bucket.
        name: The model's name.
        fingerprint: What the command's points are of.
        search_id: Which search; None: the newest of this fingerprint.

    Returns:
        None where there is none.

    Raises:
        UsageError: If the search named has another fingerprint, saying what differs, or if a record is damaged or a
            newer release wrote it.
    """
    place = _searches(models, name)
    if search_id is not None:
        found = _read(search_folder(models, name, search_id))
        if found is not None:
            _refuse_other(found, fingerprint)
        return found
    read = (_read(paths.join(place, entry)) for entry in files.list_names(place) if _ID.fullmatch(entry))
    same = [found for found in read if found is not None and dict(found.fingerprint) == dict(fingerprint)]
    return max(same, key=lambda found: (found.started_at, found.id), default=None)


def create_search(config: TuneConfig, fingerprint: Mapping[str, str], newest: int) -> Search:
    """Begin a search in a folder that nobody else has.

    Args:
        config: What is asked; its `search` is the id, None for the next of s1, s2 and so on.
        fingerprint: What the points are of.
        newest: Number of the name's newest version; 0 for none.

    Raises:
        UsageError: If the id is none.
        TryLater: If there is a search of this id by now.
    """
    models, name = config.train.models, config.train.name
    begun = Search(
        fingerprint=dict(fingerprint),
        metric=config.ranked_by,
        seed=config.train.seed,
        grid={},
        newest=newest,
        started_at=datetime.now(UTC).isoformat(timespec="microseconds"),
        claim=secrets.token_hex(16),
    )
    while True:
        chosen = config.search if config.search is not None else _next_id(_searches(models, name))
        made = with_command(replace(begun, id=chosen, folder=search_folder(models, name, chosen)), config)
        if files.create_exclusive(_record_file(made.folder), _to_bytes(made)):
            return made
        if config.search is not None:
            raise TryLater(f"Another command has just begun the search {chosen}.", "Run the same command again.")


def with_command(search: Search, config: TuneConfig) -> Search:
    """A search as its newest command asks for it.

    Args:
        search: The search.
        config: The command.
    """
    train = config.train
    settings = {
        "data": without_secrets([root_uri(train.data.data)])[0],
        "recipe": {"name": train.recipe.name, **train.recipe.values()},
        "random": config.random,
        "scheduler": config.scheduler,
        "target_sensitivity": train.target_sensitivity,
        "target_specificity": train.target_specificity,
    }
    return replace(
        search, metric=config.ranked_by, grid=dict(config.grid), settings=plain(settings), who=plain(train.who)
    )


def save_search(search: Search) -> None:
    """Write the record in the place of the last one, whole.

    Raises:
        TryLater: If the disk is full or storage does not answer.
    """
    files.write_atomic(_record_file(search.folder), _to_bytes(search))


def refuse_if_tested(search: Search, new_points: Collection[str]) -> None:
    """Refuse points that would be chosen after the test part was looked at.

    Args:
        search: The search.
        new_points: Keys of the command's points that the search has no answer of.

    Raises:
        UsageError: If the best points have been tested and there are new ones.
    """
    if search.tested is None or not new_points:
        return
    count = len(new_points)
    points = "1 point of this grid is" if count == 1 else f"{count:,} points of this grid are"
    raise UsageError(
        f"The best points of the search {search.id} were tested on {search.tested[:10]}, and {points} not among those "
        f"that they were chosen from.",
        "Search the points that it has. Or begin another search with --search ID, whose choice this test part can no "
        "longer judge: test it on other images.",
    )


def refuse_other_leaders(search: Search, leaders: Mapping[str, str], targets: Sequence[float]) -> None:
    """Refuse to choose anew after the test part was looked at.

    Args:
        search: The search.
        leaders: Backbone to the key of the point that leads it now.
        targets: Sensitivity and specificity that thresholds have to reach, as asked now.

    Raises:
        UsageError: If the best points have been tested, and this metric, grid or target would make other bundles.
    """
    if search.tested is None:
        return
    before = {backbone: (said["point"], said["targets"]) for backbone, said in search.best_of.items()}
    now = {backbone: (point, list(targets)) for backbone, point in leaders.items()}
    if any(before.get(backbone) != said for backbone, said in now.items()):
        raise UsageError(
            f"The best points of the search {search.id} were tested on {search.tested[:10]}, and this metric, grid or "
            "target would choose anew.",
            "Ask with what was tested. Or begin another search with --search ID, whose choice this test part can no "
            "longer judge.",
        )


def earlier_openings(models: str, name: str, search: Search) -> list[Search]:
    """Other searches of the name that have looked at the test part of the same split."""
    place = _searches(models, name)
    read = (_read(paths.join(place, entry)) for entry in files.list_names(place) if _ID.fullmatch(entry))
    return [one for one in read if one and one.tested and one.split == search.split and one.id != search.id]


def _searches(models: str, name: str) -> str:
    return paths.join(paths.canonical(models), check_name(name), _SEARCHES)


def _record_file(folder: str) -> str:
    return paths.join(folder, RECORD_FILE)


def _next_id(place: str) -> str:
    numbers = [int(match[1]) for entry in files.list_names(place) if (match := _NUMBERED.fullmatch(entry))]
    return f"s{max(numbers, default=0) + 1}"


def _refuse_other(found: Search, fingerprint: Mapping[str, str]) -> None:
    """Refuse a search whose points could not be compared with the command's."""
    differing = [
        _told(part, found.fingerprint.get(part, ""), fingerprint.get(part, ""))
        for part in dict.fromkeys([*fingerprint, *found.fingerprint])
        if found.fingerprint.get(part) != fingerprint.get(part)
    ]
    if differing:
        raise UsageError(
            f"The search {found.id} is of another {', another '.join(differing)}.",
            "Continue it with what it was begun with, or begin another one with --search ID.",
        )


def _told(part: str, before: str, now: str) -> str:
    """What differs, with its values where they are no hashes."""
    if not before or not now or _HASH.search(before) or _HASH.search(now):
        return part
    return f"{part} ({before}, and now {now})"


def _to_bytes(search: Search) -> bytes:
    text = json.dumps(search.as_json(), indent=1, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode(errors="backslashreplace")


def _read(folder: str) -> Search | None:
    """The record in a search's folder; None where there is none."""
    uri = _record_file(folder)
    try:
        data = files.read_bytes(uri)
    except FileNotFoundError:
        return None
    try:
        value = json.loads(data)
        number = _of(int, value["format"])
        if number > FORMAT:
            raise UsageError(
                f"{uri} has format {number}; this nightread reads up to {FORMAT}.",
                "A newer release wrote it: upgrade.",
            )
        return _search(value, folder)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{uri} is no record of a search, or damaged.",
            "Restore it from a backup, or move its folder out of the searches; its points are then trained again.",
        ) from error


def _search(value: Mapping[str, Any], folder: str) -> Search:
    return Search(
        fingerprint=_all(str, value["fingerprint"]),
        metric=_of(str, value["metric"]),
        seed=_of(int, value["seed"]),
        grid=_all(str, value["grid"]),
        settings=_of(dict, value["settings"]),
        counts=_all(int, value["counts"]),
        newest=_of(int, value["newest"]),
        split=_of(str | None, value["split"]),
        split_at=_of(int | None, value["split_at"]),
        best=_of(dict | None, value["best"]),
        best_of=_all(dict, value["best_of"]),
        sureness=_of(dict | None, value["sureness"]),
        registered=_of(dict | None, value["registered"]),
        tested=_of(str | None, value["tested"]),
        seconds=_of(int | float, value["seconds"]),
        feature_seconds=_all(int | float, value["feature_seconds"]),
        who=_of(dict, value["who"]),
        id=check_search_id(paths.name(folder)),
        folder=folder,
        started_at=_of(str, value["started_at"]),
        claim=_of(str, value["claim"]),
    )


def _all(kind: Any, value: Any) -> dict[str, Any]:
    """A mapping whose values are all of a type."""
    return {key: _of(kind, said) for key, said in _of(dict, value).items()}


def _of(kind: Any, value: Any) -> Any:
    """A value of a type, which no truth value stands in for."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not {kind}")
    return value
