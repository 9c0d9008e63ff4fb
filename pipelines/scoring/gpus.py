"""Which GPUs this machine has, without loading TensorFlow."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SECONDS = 20.0
SECONDS_OF_TENSORFLOW = 120.0
DRIVER = Path("/proc/driver/nvidia/gpus")

_COUNT = "import tensorflow; print(len(tensorflow.config.list_physical_devices('GPU')))"


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: As its driver calls it.
        memory: Bytes; None where the driver does not tell.
    """

    name: str
    memory: int | None


def gpus_here() -> list[Gpu]:
    """The GPUs of this machine, as NVIDIA's driver knows them; [] where there is none or no driver."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return [gpu for folder in sorted(DRIVER.glob("*")) for gpu in of_driver(folder / "information")]
    return list(parse_gpus(told.stdout.splitlines()))


def parse_gpus(lines: Iterable[str]) -> Iterable[Gpu]:
    """Read what `nvidia-smi` tells: one line a GPU, its name and MiB."""
    for line in lines:
        name, _, memory = line.rpartition(",")
        if name:
            mib = memory.strip()
            yield Gpu(name.strip(), int(mib) << 20 if mib.isdigit() else None)


def of_driver(information: Path) -> Iterable[Gpu]:
    """Read what the kernel's driver tells of one GPU; nothing where it does not."""
    try:
        lines = information.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "Model":
            yield Gpu(value.strip(), None)


def seen_by_tensorflow() -> int | None:
    """How many GPUs TensorFlow sees, asked in a process of its own; None where it cannot be loaded."""
    try:
        told = subprocess.run(
            [sys.executable, "-c", _COUNT], capture_output=True, text=True, timeout=SECONDS_OF_TENSORFLOW, check=True
        )
        return int(told.stdout.split()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
