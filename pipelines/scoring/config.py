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
from pipelines.storage import paths

LARGEST_SHARD = 4096
SHARDS_PER_GROUP = 16
MANIFEST_SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True)
class FailThreshold:
    """How many failed images a night may have before its exit code says so.

    Attributes:
        text: As it was given: `1%` or a count.
        share: 0–1, exactly, or None where a count was given.
        count: Images, or None where a share was given.
    """

    text: str
    share: Fraction | None
    count: int | None

    @classmethod
    def parse(cls, text: str) -> FailThreshold:
        """Read `1%`, `0.5 %` or `20`.

        Raises:
            UsageError: If it is neither a percentage between 0 and 100 nor a whole number.
        """
        cleaned = text.strip()
        if re.fullmatch(r"\d+", cleaned):
            return cls(text, None, int(cleaned))
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", cleaned)
        if match and float(match[1]) <= 100:
            return cls(text, Fraction(match[1]) / 100, None)
        raise UsageError(
            f"--fail-threshold {text!r} is neither a share nor a count.", "Use a share like 1% or a count like 20."
        )

    def exceeded(self, failed: int, total: int) -> bool:
        """Whether `failed` of `total` images are more than the threshold allows."""
        if self.count is not None:
            return failed > self.count
        return self.share is not None and failed > self.share * total


ONE_PER_CENT = FailThreshold("1%", Fraction(1, 100), None)


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
        shard_size: Images in a shard, 1–4096.
        limit: At most that many images in this run; None: all.
        dry_run: Plan and count, write nothing.
        rescore: Plan every image that is found.
        retry_failed: Plan images again that failed for a reason that lies in them.
        fail_threshold: When the exit code becomes 3.
        allow_empty: An archive without one file is no error.
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
    shard_size: int = 64
    limit: int | None = None
    dry_run: bool = False
    rescore: bool = False
    retry_failed: bool = False
    fail_threshold: FailThreshold = ONE_PER_CENT
    allow_empty: bool = False
    who: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what can only fail later.

        Raises:
            UsageError: Naming the value and the rule.
        """
        check_precision(self.precision)
        if not 1 <= self.shard_size <= LARGEST_SHARD:
            raise UsageError(f"--shard-size {self.shard_size} is out of range.", f"Use 1 to {LARGEST_SHARD}.")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit {self.limit} is not a number of images.", "Use 1 or more.")
        if self.columns and not self.is_manifest:
            raise UsageError("--columns names a manifest's columns, and this archive is no manifest.", "Leave it out.")
        if self.root is not None and not self.is_manifest:
            raise UsageError("--root belongs to a manifest, and this archive is no manifest.", "Leave it out.")

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
        return hashlib.sha256(json.dumps(decides_rows, sort_keys=True).encode()).hexdigest()[:16]

    def as_record(self) -> dict[str, Any]:
        """What `run.json` keeps of the configuration; no secret has a place in it."""
        return {
            "archive": paths.escape_name(paths.canonical(self.archive)),
            "root": None if self.root is None else paths.escape_name(paths.canonical(self.root)),
            "columns": dict(self.columns),
            "include": list(self.include),
            "exclude": list(self.exclude),
            "model": paths.escape_name(self.model),
            "precision": self.precision,
            "shard_size": self.shard_size,
            "limit": self.limit,
            "rescore": self.rescore,
            "retry_failed": self.retry_failed,
            "fail_threshold": self.fail_threshold.text,
        }
