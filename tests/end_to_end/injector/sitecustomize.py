"""A fault injector: Python loads it in every process whose PYTHONPATH names this folder, actors among them.

It wraps functions of the modules that the environment variable FAULTS names, once they have been imported:

poison    an image with the bytes ABORT-HERE behind its end kills its decoder, one with HANG-HERE hangs it; the time
          limit of decoding is 2 s
pause     the process stops itself (SIGSTOP) between the last check of its lease and the commit; FAULT_SEEN is created
foreign   leases name another machine, and an unchanged one is stale after 3 s instead of two minutes
full      writing a part fails as on a full disk once FAULT_AFTER parts are there
vanish    an image whose name holds `deleted`, `replaced` or `closed` is deleted, replaced or made unreadable just
          before it is read
"""

from __future__ import annotations

import errno
import importlib.abc
import importlib.util
import os
import signal
import sys
import time
from pathlib import Path
from types import ModuleType

FAULTS = set(os.environ.get("FAULTS", "").split(","))


def poison_decode(module: ModuleType) -> None:
    real = module.decode

    def decode(data: bytes, *arguments: object, **options: object) -> object:
        if b"ABORT-HERE" in data:
            os.abort()
        while b"HANG-HERE" in data:
            time.sleep(3600)
        return real(data, *arguments, **options)

    module.decode = decode


def poison_limit(module: ModuleType) -> None:
    module.DECODE_SECONDS = 2.0


def pause(module: ModuleType) -> None:
    real = module.commit_run

    def commit_run(*arguments: object, before_append: object, **options: object) -> object:
        calls = []

        def then_stop() -> None:
            before_append()
            calls.append(1)
            if len(calls) == 2:  # the second look, when all rows have been handed over
                Path(os.environ["FAULT_SEEN"]).touch()
                os.kill(os.getpid(), signal.SIGSTOP)

        return real(*arguments, before_append=then_stop, **options)

    module.commit_run = commit_run


def foreign_identity(module: ModuleType) -> None:
    import dataclasses

    real = module.Identity.of_this_process.__func__
    name = os.environ["FAULT_HOST"]
    fields = {field.name for field in dataclasses.fields(module.Identity)}
    changed = {field: name for field in ("host", "boot_id") if field in fields}
    module.Identity.of_this_process = classmethod(lambda cls: dataclasses.replace(real(cls), **changed))


def impatient(module: ModuleType) -> None:
    module.STALE_SECONDS = 3.0
    module.POLL_SECONDS = 0.5


def full(module: ModuleType) -> None:
    real = module.write

    def write(path: str, data: bytes) -> None:
        folder = Path(path).parent
        if folder.name == "parts" and folder.is_dir() and len(os.listdir(folder)) >= int(os.environ["FAULT_AFTER"]):
            raise OSError(errno.ENOSPC, "No space left on device", path)
        real(path, data)

    module.write = write


def vanish(module: ModuleType) -> None:
    real = module.ImageReader.read

    def read(self: object, uri: str) -> object:
        if "deleted" in uri:
            Path(uri).unlink(missing_ok=True)
        elif "replaced" in uri and "again" not in uri:
            other = Path(uri).with_name("other-bytes")
            if other.exists():
                os.replace(other, uri)
        return real(self, uri)

    module.ImageReader.read = read


WRAPPERS = {
    "poison": {"pipelines.images.decode": poison_decode, "pipelines.scoring.scorer": poison_limit},
    "pause": {"pipelines.predictions.commit": pause},
    "foreign": {"pipelines.storage.processes": foreign_identity, "pipelines.storage.leases": impatient},
    "full": {"pipelines.storage.local_files": full},
    "vanish": {"pipelines.storage.reading": vanish},
}


class Injector(importlib.abc.MetaPathFinder):
    """Finds a module as Python would, and wraps it once it has been executed."""

    def __init__(self, wrappers: dict) -> None:
        self.wrappers = wrappers

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        wrap = self.wrappers.pop(name, None)
        if wrap is None:
            return None
        spec = importlib.util.find_spec(name)
        real = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            real(module)
            wrap(module)

        spec.loader.exec_module = exec_module
        return spec


for fault in FAULTS & WRAPPERS.keys():
    sys.meta_path.insert(0, Injector(dict(WRAPPERS[fault])))
