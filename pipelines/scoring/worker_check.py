"""Whether the nodes of a joined cluster can score as this machine does, tried on each before the first image.

A node that lacks a share, or has another release of a decoder, would otherwise fill the table with failures or with
other answers, and the morning would not tell which. No clock is compared: none of them is trusted.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pipelines.errors import NightreadError, TryLater, UsageError, first_line, last_line
from pipelines.images.preprocess import Preprocessing
from pipelines.models.golden import agree, golden_answers, tolerance_of
from pipelines.models.runtime import Scorer, ScorerIO
from pipelines.scoring.worker_process import begin_worker
from pipelines.storage import files, paths
from pipelines.storage.listing import check_root

if TYPE_CHECKING:
    from pipelines.scoring.night import Night

# What decides pixels and answers.
DECIDING = ("nightread", "ai-edge-litert", "numpy", "opencv-python-headless", "pillow", "simplejpeg")
SECONDS_TO_LOOK = 180.0
LEAST_DISK = 256 << 20
SAME = "Install the same versions on all nodes, from one requirements.lock."
MOUNT = "Mount it on every node under the same name, or give a bucket (s3://…)."


@dataclass(frozen=True)
class Question:
    """What each node is asked.

    Attributes:
        versions: Of what decides, as the driver has them.
        root: Place below which the images lie, if it is to be listed.
        mark: File among the results that the driver wrote.
        token: What stands in it.
        input_size: Side of the model's input, in pixels.
        preprocessing_id: What that many pixels shall come out as.
        io: How the model is fed and read.
    """

    versions: Mapping[str, str]
    root: str | None
    mark: str
    token: bytes
    input_size: int
    preprocessing_id: str
    io: ScorerIO


@dataclass(frozen=True)
class Finding:
    """What a node found.

    Attributes:
        wrote: The file that it wrote beside the mark; empty where it came to none.
        answers: Of the model to its golden images, float32 [6, K]; None where it came to none.
        trouble: What is wrong there, as the end of a sentence that begins with the node; empty where all is well.
        cure: What to do about it.
        passing: Whether waiting helps.
    """

    wrote: str = ""
    answers: np.ndarray | None = None
    trouble: str = ""
    cure: str = ""
    passing: bool = False


def installed() -> dict[str, str]:
    """The versions of what decides, as they are here, by name; `none` where one is missing."""
    found = {}
    for name in DECIDING:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def refuse_others(wanted: Mapping[str, str], here: Mapping[str, str], where: str, whose: str) -> None:
    """Refuse a place that has other versions of what decides pixels and answers.

    Args:
        wanted: Versions by name; what is not named may be anything.
        here: Versions by name.
        where: The place, for the message.
        whose: Where `wanted` is from, for the message.

    Raises:
        UsageError: If one differs; names them.
    """
    other = [
        f"{name} {here[name]}, not {wanted[name]}" for name in DECIDING if wanted.get(name, here[name]) != here[name]
    ]
    if other:
        raise UsageError(f"Other versions on {where} than on {whose}: {'; '.join(other)}.", SAME)


def look(question: Question, model: bytes) -> Finding:
    """Try on this node what scoring needs; what is wrong is told, not raised."""
    begin_worker()
    try:
        _look_around(question)
        wrote = f"{question.mark}-{secrets.token_hex(8)}"
        files.write_atomic(wrote, question.token)
        scorer = Scorer(model, question.io)
        return Finding(wrote, golden_answers(scorer, question.input_size))
    except NightreadError as error:
        return Finding(trouble=error.message, cure=error.cure, passing=isinstance(error, TryLater))
    except Exception as error:  # whatever a broken installation raises
        return Finding(trouble=f"{type(error).__name__}: {last_line(error)}.", cure=SAME)


def _look_around(question: Question) -> None:
    refuse_others(question.versions, installed(), "this node", "the driver's")
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < LEAST_DISK:
        raise TryLater(f"{tempfile.gettempdir()} has {free >> 20} MiB free.", f"Make room: {LEAST_DISK >> 20} MiB.")
    if question.root is not None:
        _look_at_archive(question.root)
    try:
        seen = files.read_bytes(question.mark)
    except FileNotFoundError:
        seen = b""
    if seen != question.token:
        raise UsageError("it does not see what the driver writes among the results.", MOUNT)
    prepared = Preprocessing(question.input_size).id
    if prepared != question.preprocessing_id:
        raise UsageError(
            f"images come out as {prepared[:12]} there, and as {question.preprocessing_id[:12]} here.", SAME
        )


def _look_at_archive(root: str) -> None:
    check_root(root)
    place = paths.canonical(root)
    if paths.is_local(place) and not any(os.scandir(place)):
        raise UsageError("the archive's folder is empty there, as of a share that is not mounted.", MOUNT)


def check_nodes(night: Night, folder: str, model: bytes, io: ScorerIO) -> None:
    """Have every node on which actors can run try what scoring needs, one task on each.

    Args:
        night: The command.
        folder: Folder among the results that the driver writes to.
        model: Bytes of the LiteRT model, which has passed its self-test here.
        io: How it is fed and read.

    Raises:
        UsageError: If a person must act; names the node.
        TryLater: If waiting helps, or a node does not answer.
    """
    size = night.bundle.input_size
    # A manifest's images may be read where they may not be listed.
    listed = paths.is_local(paths.canonical(night.root)) or not night.config.is_manifest
    here = golden_answers(Scorer(model, io), size)
    tolerance = tolerance_of(night.config.precision)
    with _marked(folder) as (mark, token):
        question = Question(
            installed(), night.root if listed else None, mark, token, size, night.bundle.preprocessing_id, io
        )
        found = {node: _judged(finding, here, tolerance, token) for node, finding in _looks(question, model).items()}
    bad = {node: finding for node, finding in found.items() if finding.trouble}
    if not bad:
        return
    lasting = {node: finding for node, finding in bad.items() if not finding.passing}
    node, finding = next(iter((lasting or bad).items()))
    more = f" ({len(bad) - 1} more of {len(found)} nodes are not ready either.)" if len(bad) > 1 else ""
    kind = UsageError if lasting else TryLater
    raise kind(f"Node {node} cannot score: {finding.trouble}{more}", finding.cure)


@contextlib.contextmanager
def _marked(folder: str) -> Iterator[tuple[str, bytes]]:
    """A file of a random name and content, gone afterwards with those that nodes wrote beside it."""
    name, token = f".node-check-{secrets.token_hex(8)}", secrets.token_bytes(16)
    files.write_atomic(paths.join(folder, name), token)
    try:
        yield paths.join(folder, name), token
    finally:
        for left in files.list_names(folder):
            if left.startswith(name):
                files.delete(paths.join(folder, left))


def _judged(finding: Finding, here: np.ndarray, tolerance: float, token: bytes) -> Finding:
    """Hold what a node wrote and answered against what the driver sees and answers."""
    if finding.trouble or finding.answers is None:
        return finding
    try:
        seen = files.read_bytes(finding.wrote)
    except FileNotFoundError:
        seen = b""
    if seen != token:
        return Finding(trouble="the driver does not see what it writes among the results.", cure=MOUNT)
    if not agree(finding.answers, here, tolerance):
        return Finding(trouble="the model answers otherwise there than here.", cure=SAME)
    return finding


def _looks(question: Question, model: bytes) -> dict[str, Finding]:
    """What each node found, by its name; a node that is lost meanwhile scores nothing and says nothing."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in cast(Any, ray).nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    if not nodes:  # an autoscaler starts them when actors ask for room
        return {}
    task = ray.remote(num_cpus=0, max_retries=1)(look)
    held = ray.put(model)
    asked: dict[Any, str] = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            question, held
        ): f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})"
        for node in nodes
    }
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=SECONDS_TO_LOOK)
    found = {asked[late]: Finding(trouble=_SILENT, cure="See how it does.", passing=True) for late in silent}
    for one in answered:
        with contextlib.suppress(ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError):
            found[asked[one]] = _answer_of(ray, one)
    return found


_SILENT = f"it does not answer within {SECONDS_TO_LOOK:g} s."


def _answer_of(ray: Any, task: Any) -> Finding:
    try:
        finding: Finding = ray.get(task)
        return finding
    except (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError):
        raise
    except ray.exceptions.RayTaskError as error:  # it does not even know this function
        said = last_line(error if error.cause is None else error.cause)[:200]
        return Finding(trouble=f"this release of nightread does not run there: {said}.", cure=SAME)
    except ray.exceptions.RayError as error:
        return Finding(trouble=f"{first_line(error)[:200]}.", cure="See how it does.", passing=True)
