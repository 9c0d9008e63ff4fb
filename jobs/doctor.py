"""`nightread doctor`: is everything here that a night needs?"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from jobs.console import Console, JsonOption
from jobs.score import InsecureOption
from pipelines.errors import NightreadError, UsageError

LIBRARIES = (
    "ray", "ai-edge-litert", "tensorflow", "keras", "pyarrow", "deltalake", "duckdb", "obstore", "s3fs",
    "simplejpeg", "opencv-python-headless", "pillow",
)  # fmt: skip
GIB = 1 << 30
MEMORY_FOR_RAY = 1.0 * GIB
MEMORY_PER_CORE = 0.4 * GIB
TEMPORARY_SPACE = 1.0 * GIB
RESULTS_SPACE = 1.0 * GIB

# What kernel_check.tflite, a convolution over 8x8 pixels, answers for the pixels 0, 1, 2, ….
KERNEL_SIDE = 8
KERNEL_ANSWERS = (140.96248, 175.55624)
# Side of the pictures that most models take, for what the rule of the engines would say.
PIXELS = 224


@dataclass(frozen=True)
class Check:
    """What one look at this machine found.

    Attributes:
        name: What was looked at.
        good: Whether it will do.
        found: What was found.
        cure: What to do where it will not.
        needed: False where a night can do without it.
    """

    name: str
    good: bool
    found: str
    cure: str = ""
    needed: bool = True


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("doctor")(doctor)


def doctor(
    results: Annotated[str | None, typer.Option(help="Also try whether this folder or URI can hold results.")] = None,
    address: Annotated[str, typer.Option(help="The Ray to try: local, auto or HOST:PORT.")] = "local",
    insecure: InsecureOption = False,
    json: JsonOption = False,
) -> int:
    """Look whether this machine has what a night needs.

    Each line is good or comes with its cure. Exit code 0 if all that is needed is good, else 2.
    """
    console = Console(json)
    checks: list[Check] = []
    for check in examine(results, address, insecure):
        checks.append(replace(check, cure="") if check.good else check)
        if not json:
            show(console, check)
    exit_code = 0 if all(check.good for check in checks if check.needed) else UsageError.exit_code
    console.result({"checks": checks, "exit_code": exit_code}, _verdict(checks))
    return exit_code


def examine(results: str | None, address: str, insecure: bool = False) -> Iterator[Check]:
    """Look at one thing after the other.

    Args:
        results: Folder or URI that is to be a place for results; nothing is left there. None leaves that out.
        address: The Ray that is started or joined.
        insecure: Join it even if it takes anybody.
    """
    yield _python()
    yield from _libraries()
    yield _cores()
    yield _memory()
    yield _temporary_folder()
    yield _kernel()
    yield _weights()
    if results is not None:
        yield _results(results)
    yield _gpus()
    yield from _ray(address, insecure)


def show(console: Console, check: Check) -> None:
    """Print a check as one line, and its cure below it where it has one to give."""
    mark = "ok  " if check.good else ("FAIL" if check.needed else "note")
    console.say(f"{mark}  {check.name:<16} {check.found}")
    if check.cure and not check.good:
        console.say(f"      {'':<16} {check.cure}")


def _verdict(checks: list[Check]) -> str:
    bad = [check.name for check in checks if check.needed and not check.good]
    return f"\nNot ready: {', '.join(bad)}." if bad else "\nReady."


def _python() -> Check:
    found = f"Python {sys.version.split()[0]}, nightread {metadata.version('nightread')}, {sys.platform}"
    good = sys.platform == "linux" and (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Check("versions", good, found, "Use Linux (or WSL2) with Python 3.11, 3.12 or 3.13.")


def _libraries() -> Iterator[Check]:
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Check("libraries", False, f"{name} is not installed", "pip install -c requirements.lock .")
    yield Check("libraries", True, ", ".join(f"{name} {version}" for name, version in versions.items()))


def _cores() -> Check:
    from cluster.session import usable_cores

    return Check("cores", True, str(usable_cores()))


def _memory() -> Check:
    from cluster.session import usable_cores

    free = _available_memory()
    needed = MEMORY_FOR_RAY + MEMORY_PER_CORE * usable_cores()
    found = f"{free / GIB:.1f} GiB free, {needed / GIB:.1f} GiB needed to score on every core"
    return Check("memory", free >= needed, found, "Stop other programs, or score with fewer actors: --actors N.")


def _available_memory() -> float:
    """Bytes that may still be used: what the kernel calls available, cut by the container's limit."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    free = float(next(int(line[1]) for line in lines if line[0] == "MemAvailable:") * 1024)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except OSError:
        return free
    return free if limit == "max" else min(free, float(int(limit) - used))


def _temporary_folder() -> Check:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    cure = "Make room there, or set TMPDIR to a folder on a larger disk."
    return Check("temporary disk", free >= TEMPORARY_SPACE, f"{folder}: {free / GIB:.1f} GiB free", cure)


def _kernel() -> Check:
    """Let LiteRT score a model whose answer is known."""
    cure = "Reinstall ai-edge-litert in the version of requirements.lock; the processor may lack what it needs."
    try:
        from pipelines.models.runtime import Scorer, ScorerIO

        io = ScorerIO(KERNEL_SIDE, len(KERNEL_ANSWERS), input_dtype="float32", outputs="features")
        scorer = Scorer(Path(__file__).with_name("kernel_check.tflite").read_bytes(), io)
        import numpy as np

        pixels = np.arange(KERNEL_SIDE * KERNEL_SIDE * 3, dtype=np.uint8).reshape(KERNEL_SIDE, KERNEL_SIDE, 3)
        answers = scorer(pixels)
        good = bool(np.allclose(answers, KERNEL_ANSWERS, rtol=1e-4))
    except (ImportError, OSError, RuntimeError, ValueError, NightreadError) as error:
        return Check("LiteRT", False, _first_line(error), cure)
    found = "answers as it should" if good else f"answers {answers.tolist()}, not {list(KERNEL_ANSWERS)}"
    return Check("LiteRT", good, found, cure)


def _weights() -> Check:
    from pipelines.models.weights import FOLDER_VARIABLE, weight_folders

    folders = [str(folder) for folder in weight_folders()]
    files = [path.name for folder in folders for path in sorted(Path(folder).glob("*.h5"))]
    if files:
        return Check("ImageNet weights", True, ", ".join(files), needed=False)
    return Check(
        "ImageNet weights",
        False,
        f"none in {' or '.join(folders)}",
        f"Only training needs them: it fetches them where there is internet, else put them into {FOLDER_VARIABLE}, "
        "or train with --weights none.",
        needed=False,
    )


def _results(results: str) -> Check:
    """Prove what the lease and the commit stand on, as each night does before its first write."""
    from pipelines.predictions.table import table_uri
    from pipelines.storage import paths
    from pipelines.storage.preflight import prove_place

    try:
        place = paths.parent(table_uri(results))
        proof = prove_place(place)
    except NightreadError as error:
        return Check("results", False, error.message, error.cure or "Name another folder with --results.")
    return _room_for_results(results, place, proof.remark)


def _room_for_results(results: str, place: str, remark: str) -> Check:
    from pipelines.storage import paths

    found = f"{results}: exclusive creation, reading and deleting work"
    if not paths.is_local(place):
        return Check("results", True, found)
    nearest = next(folder for folder in (Path(place), *Path(place).parents) if folder.exists())
    free = shutil.disk_usage(nearest).free
    found = f"{found}, {free / GIB:.1f} GiB free{'. ' if remark else ''}{remark}"
    return Check("results", free >= RESULTS_SPACE, found, "Make room on that disk.")


def _gpus() -> Check:
    """Look for GPUs; TensorFlow is only asked, in a process of its own, where the driver knows of one."""
    from pipelines.scoring.gpus import gpus_here, seen_by_tensorflow

    gpus = gpus_here()
    if not gpus:
        return Check("GPU", True, "none on this machine", needed=False)
    named = ", ".join(f"{gpu.name} ({gpu.memory / GIB:.0f} GiB)" if gpu.memory else gpu.name for gpu in gpus)
    seen = seen_by_tensorflow()
    if seen is None:
        return Check("GPU", False, f"{named}; TensorFlow cannot be loaded", "Reinstall tensorflow.", needed=False)
    cure = "Install tensorflow[and-cuda] to score on it, or leave it: the direct engine needs none."
    return Check("GPU", seen >= len(gpus), f"{named}; TensorFlow sees {seen}", cure, needed=False)


def _ray(address: str, insecure: bool) -> Iterator[Check]:
    """Start or join Ray, and say by which engine `score` would use what it has."""
    from cluster.session import start_or_join

    begun = time.monotonic()
    try:
        with start_or_join(address, insecure) as size:
            found = f"{size.cpus} CPUs, answered after {time.monotonic() - begun:.1f} s"
    except NightreadError as error:
        yield Check("Ray", False, error.message, error.cure)
        return
    yield Check("Ray", True, found)
    yield Check("engine", True, _engine(size.cpus, sum(size.node_gpus), size.may_carry_pixels), needed=False)


def _engine(cores: int, gpus: int, may_carry_pixels: bool) -> str:
    """What `--engine auto` would do, by the rule and the rates that it assumes before a night measures its own.

    Args:
        cores: Of all nodes together.
        gpus: Likewise.
        may_carry_pixels: Whether pixels may travel between its nodes.
    """
    from pipelines.scoring.config import SHARD_SIZE
    from pipelines.scoring.sizing import Machines, Rates, direct_rate, plan_split

    rates = Rates()
    assumed = (
        f"assumed: {rates.decode:.0f} images/s decoded by a core, {rates.kernel:.0f} answered by a core, "
        f"{rates.gpu:,.0f} by a GPU; a night with GPUs measures its own"
    )
    alone = f"direct: {cores} core{'s' if cores > 1 else ''}, about {direct_rate(cores, rates):,.0f} images/s"
    if cores < 2:
        return f"{alone} ({assumed})"
    plan = plan_split(Machines(cores, max(1, gpus)), rates, PIXELS, SHARD_SIZE)
    if not gpus:
        return f"{alone}; no GPU, with one: {plan.sentence()} ({assumed})"
    if not may_carry_pixels:
        return f"{alone}; Ray's TLS is off, and without it no pixels travel between nodes ({assumed})"
    if not plan.worth_it:
        return f"{alone}; GPUs would not make it shorter: {plan.sentence()} ({assumed})"
    return f"split: {plan.sentence()} ({assumed})"


def _first_line(error: BaseException) -> str:
    name = type(error).__name__
    text = str(error).strip().splitlines()
    return f"{name}: {text[0]}" if text else name
