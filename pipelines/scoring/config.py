"""What a scoring run is told, validated before anything starts."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from pipelines.errors import UsageError
from pipelines.models.bundle import check_precision
from pipelines.scoring.hours import NO_END, Hours
from pipelines.storage import paths

LARGEST_SHARD = 4096
COMMIT_EVERY = 1_000_000
SHARD_SIZE = 64
# Hashing an image takes a tenth of scoring it: larger shards save most of what a part costs beside it.
SAME_BYTES_SHARD_SIZE = 512
SHARDS_PER_GROUP = 16
MANIFEST_SUFFIXES = (".csv", ".parquet")
ENGINES = ("auto", "direct", "split")


@dataclass(frozen=True)
class Allowance:
    """How many images may be so before a night says so: a share or a count.

    Attributes:
        text: As it was given: `1%` or a count.
        share: 0–1, exactly, or None where a count was given.
        count: Images, or None where a share was given.
    """

    text: str
    share: Fraction | None
    count: int | None

    @classmethod
    def parse(cls, option: str, text: str) -> Allowance:
        """Read `1%`, `0.5 %` or `20`.

        Raises:
            UsageError: If it is neither a percentage between 0 and 100 nor a whole number; names the option.
        """
        cleaned = text.strip()
        if re.fullmatch(r"\d+", cleaned):
            return cls(text, None, int(cleaned))
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", cleaned)
        if match and float(match[1]) <= 100:
            return cls(text, Fraction(match[1]) / 100, None)
        raise UsageError(
            f"{option} {text!r} is neither a share nor a count.", "Use a share like 1% or a count like 20."
        )

    def exceeded(self, images: int, total: int) -> bool:
        """Whether `images` of `total` are more than is allowed."""
        if self.count is not None:
            return images > self.count
        return self.share is not None and images > self.share * total


ONE_PER_CENT = Allowance("1%", Fraction(1, 100), None)
TWENTY_PER_CENT = Allowance("20%", Fraction(20, 100), None)
# A share of a small archive is soon exceeded by a day's work.
LEAST_CHANGED = 1000


@dataclass(frozen=True)
class PoolSize:
    """How many actors score, at least and at most; None leaves it to the size of the cluster."""

    least: int | None = None
    most: int | None = None

    @classmethod
    def parse(cls, text: str | None) -> PoolSize:
        """Read `4` or `1:8`.

        Raises:
            UsageError: If it is neither, or the first number is larger than the second, or one is 0.
        """
        if text is None:
            return cls()
        match = re.fullmatch(r"(\d+)(?::(\d+))?", text.strip())
        if match:
            least = int(match[1])
            most = int(match[2] or match[1])
            if 1 <= least <= most:
                return cls(least, most)
        raise UsageError(f"--actors {text!r} is not a pool size.", "Use N, or MIN:MAX with 1 <= MIN <= MAX.")

    def within(self, cpus: int) -> tuple[int, int]:
        """The pool for a cluster of `cpus` cores: (least, most)."""
        return (self.least or cpus, self.most or cpus)


@dataclass(frozen=True)
class ScoreConfig:
    """One `score` command.

    Attributes:
        archive: A folder, a URI or a manifest, as the user named it.
        model: Reference of a bundle: its folder, `MODELS/NAME` or `MODELS/NAME@VERSION`.
        results: Folder or URI of the results.
        root: Where relative URIs of a manifest start; None: the manifest's folder.
        columns: Our column name to the manifest's.
        include: Globs that bring back what is left out by default, or narrow the listing.
        exclude: Globs that leave images out.
        pool: Size of the actor pool.
        precision: `float32` or `int8`.
        engine: One of `ENGINES`: where the model answers; it does not decide rows.
        shard_size: Images in a shard, 1–4096; None: 64, and 512 with `same_bytes`.
        limit: At most that many images in this run; None: all.
        dry_run: Plan and count, write nothing.
        rescore: Plan every image that is found.
        retry_failed: Plan images again that failed for a reason that lies in them.
        fail_threshold: When the exit code becomes 3.
        allow_empty: An archive without one file is no error.
        hours: When the night has to end.
        commit_every: Images that are committed at once; more make several runs, one after the other.
        wait_seconds: How long to queue behind another owner of the results; None: only to see whether it lives.
        min_age_seconds: Files that were written to less than so long ago are left to the next night.
        backfill: How many images that another version of this model has scored are scored again at most; None: all.
        max_changed: How many of the known images may be changed or gone before the run stops for a person.
        accept_changes: They may all be.
        same_bytes: A changed image whose bytes are the old ones keeps its score.
        map_prefix: `FROM=TO` for each prefix of a manifest's URIs that is called otherwise here.
        path_columns: An expression whose named groups become columns; None: no such columns.
        publish: Folder or URI of the plain Parquet file of the newest scores; None: none is written.
        requests_per_second: Requests that the archive's store gets at most, all actors together; None: no limit.
        patience_seconds: How long an archive that is gone is waited for.
        who: What `run.json` says of the command: user, host, command line, versions.
    """

    archive: str
    model: str
    results: str
    root: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    pool: PoolSize = PoolSize()
    precision: str = "float32"
    engine: str = "auto"
    shard_size: int | None = None
    limit: int | None = None
    dry_run: bool = False
    rescore: bool = False
    retry_failed: bool = False
    fail_threshold: Allowance = ONE_PER_CENT
    allow_empty: bool = False
    hours: Hours = NO_END
    commit_every: int = COMMIT_EVERY
    wait_seconds: float | None = None
    min_age_seconds: float = 0.0
    backfill: int | None = None
    max_changed: Allowance = TWENTY_PER_CENT
    accept_changes: bool = False
    same_bytes: bool = False
    map_prefix: tuple[str, ...] = ()
    path_columns: str | None = None
    publish: str | None = None
    requests_per_second: float | None = None
    patience_seconds: float = 300.0
    who: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what can only fail later.

        Raises:
            UsageError: Naming the value and the rule.
        """
        check_precision(self.precision)
        if self.engine not in ENGINES:
            raise UsageError(f"--engine {self.engine!r} is not known.", f"Use one of: {', '.join(ENGINES)}.")
        if not 1 <= self.images_a_shard <= LARGEST_SHARD:
            raise UsageError(f"--shard-size {self.shard_size} is out of range.", f"Use 1 to {LARGEST_SHARD}.")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit {self.limit} is not a number of images.", "Use 1 or more.")
        if self.commit_every < 1:
            raise UsageError(f"--commit-every {self.commit_every} is not a number of images.", "Use 1 or more.")
        if self.backfill is not None and self.backfill < 0:
            raise UsageError(f"--backfill {self.backfill} is not a number of images.", "Use all, none or a number.")
        if self.requests_per_second is not None and not 0 < self.requests_per_second < float("inf"):
            raise UsageError(
                f"--max-requests-per-second {self.requests_per_second:g} is no rate.", "Use a number above 0."
            )
        if self.accept_changes and self.same_bytes:
            raise UsageError(
                "--accept-changes scores what is changed, --same-bytes keeps the score of what is not.", "Say one."
            )
        self._check_manifest_options()
        if self.path_columns is not None:
            from pipelines.archive.path_columns import PathColumns

            PathColumns.parse(self.path_columns)

    def _check_manifest_options(self) -> None:
        if self.map_prefix:
            from pipelines.archive.prefix_map import parse_prefix_map

            parse_prefix_map(self.map_prefix)
        if self.is_manifest:
            if self.min_age_seconds:
                raise UsageError(
                    "--min-age belongs to a folder or bucket: a manifest says itself what is to be scored.",
                    "Leave it out.",
                )
            return
        if self.columns:
            raise UsageError("--columns names a manifest's columns, and this archive is no manifest.", "Leave it out.")
        if self.root is not None:
            raise UsageError("--root belongs to a manifest, and this archive is no manifest.", "Leave it out.")
        if self.map_prefix:
            raise UsageError("--map-prefix belongs to a manifest, and this archive is no manifest.", "Leave it out.")

    @property
    def images_a_shard(self) -> int:
        """Images in a shard."""
        if self.shard_size is not None:
            return self.shard_size
        return SAME_BYTES_SHARD_SIZE if self.same_bytes else SHARD_SIZE

    @property
    def is_manifest(self) -> bool:
        """Whether the archive is a manifest file rather than a folder or a bucket's prefix."""
        return self.archive.lower().endswith(MANIFEST_SUFFIXES)

    @property
    def continues_planning(self) -> bool:
        """Whether a command that finished an interrupted run goes on to plan what arrived since."""
        return not (self.rescore or self.retry_failed or self.limit is not None)

    def fingerprint(self, model_id: str, preprocessing_id: str) -> str:
        """Hash of everything that decides rows, never of the listing: 16 hex digits.

        Two commands with one fingerprint continue each other's interrupted run.
        """
        decides_rows = {
            "archive": paths.canonical(self.archive),
            "root": paths.canonical(self.root) if self.root is not None else None,
            "columns": dict(sorted(self.columns.items())),
            "include": sorted(self.include),
            "exclude": sorted(self.exclude),
            "limit": self.limit,
            "rescore": self.rescore,
            "retry_failed": self.retry_failed,
            "precision": self.precision,
            "model_id": model_id,
            "preprocessing_id": preprocessing_id,
        }
        # What came later is named only where it is used: a run of an earlier release can still be continued.
        later = {
            "map_prefix": sorted(self.map_prefix),
            "path_columns": self.path_columns,
            "backfill": self.backfill,
            "same_bytes": self.same_bytes,
        }
        decides_rows |= {
            name: value for name, value in later.items() if not (value is None or value is False or value == [])
        }
        return hashlib.sha256(json.dumps(decides_rows, sort_keys=True).encode()).hexdigest()[:16]

    def as_record(self) -> dict[str, Any]:
        """What `run.json` keeps of the configuration; no secret has a place in it."""
        return {
            "archive": paths.escape_name(paths.canonical(self.archive)),
            "root": None if self.root is None else paths.escape_name(paths.canonical(self.root)),
            "columns": dict(self.columns),
            "include": list(self.include),
            "exclude": list(self.exclude),
            "model": paths.escape_name(paths.canonical(self.model)),
            "precision": self.precision,
            "engine": self.engine,
            "shard_size": self.images_a_shard,
            "limit": self.limit,
            "rescore": self.rescore,
            "retry_failed": self.retry_failed,
            "fail_threshold": self.fail_threshold.text,
            "commit_every": self.commit_every,
            "backfill": self.backfill,
            "same_bytes": self.same_bytes,
            "accept_changes": self.accept_changes,
            "map_prefix": list(self.map_prefix),
            "path_columns": self.path_columns,
            "min_age_seconds": self.min_age_seconds,
            "until": None if self.hours.until is None else f"{self.hours.until:%H:%M}",
            "max_seconds": self.hours.max_seconds,
            "publish": None if self.publish is None else paths.escape_name(paths.canonical(self.publish)),
        }
