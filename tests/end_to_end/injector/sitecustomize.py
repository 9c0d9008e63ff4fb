"""A fault injector: Python loads it in every process whose PYTHONPATH names this folder, actors among them.

It wraps functions of the modules that the environment variable FAULTS names, once they have been imported:

poison    an image with the bytes ABORT-HERE behind its end kills its decoder, one with HANG-HERE hangs it; the time
          limit of decoding is 2 s
hungry    what decodes an image with the bytes HUNGRY-HERE behind its end is killed, as for want of memory
pause     the process stops itself (SIGSTOP) between the last check of its lease and the commit; FAULT_SEEN is created
foreign   leases name another machine, and an unchanged one is stale after 3 s instead of two minutes
full      writing a part fails as on a full disk once FAULT_AFTER parts are there
hasty     an archive that is gone, and a cluster's head, are waited for FAULT_PATIENCE seconds, not for minutes
slow      reading an image takes FAULT_SECONDS longer
receipts  an actor scores nothing: it gives a receipt for each shard after FAULT_SECONDS
vanish    an image whose name holds `deleted`, `replaced` or `closed` is deleted, replaced or made unreadable just
          before it is read
nolinks   the kernel refuses hard links and renames that must not replace, as an SMB share does, to this process and all
          that it starts, whatever they are written in
lax       creating a file of a name that is taken succeeds
"""

from __future__ import annotations

import ctypes
import errno
import importlib.abc
import importlib.util
import os
import platform
import signal
import struct
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


def hungry(module: ModuleType) -> None:
    real = module.decode

    def decode(data: bytes, *arguments: object, **options: object) -> object:
        if b"HUNGRY-HERE" in data:
            os.kill(os.getpid(), signal.SIGKILL)
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


def hasty(module: ModuleType) -> None:
    real = module.ScoreConfig.__init__

    def init(self: object, *arguments: object, **options: object) -> None:
        real(self, *arguments, patience_seconds=float(os.environ["FAULT_PATIENCE"]), **options)

    module.ScoreConfig.__init__ = init


def hasty_head(module: ModuleType) -> None:
    module.PATIENCE_SECONDS = float(os.environ["FAULT_PATIENCE"])
    module.ASK_SECONDS = 1.0


def slow(module: ModuleType) -> None:
    real = module.ImageReader.read

    def read(self: object, uri: str) -> object:
        time.sleep(float(os.environ["FAULT_SECONDS"]))
        return real(self, uri)

    module.ImageReader.read = read


def receipts(module: ModuleType) -> None:
    def score(_self: object, shard: int, images: object, _suspect: bool, actor: str, _following: object) -> object:
        seconds = float(os.environ["FAULT_SECONDS"])
        time.sleep(seconds)
        stages = {"read": 0.1 * seconds, "decode": 0.4 * seconds, "score": 0.4 * seconds, "write": 0.1 * seconds}
        slowest = [(seconds / 20, row) for row in range(3)]
        return module.Receipt(shard, images.num_rows, {}, seconds, actor, stages=stages, slowest=slowest)

    module.ShardScorer.__init__ = lambda *_arguments: None
    module.ShardScorer.score = score


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


def refuse_links() -> None:
    """Put a filter below this process that answers link, linkat and renameat2 with flags by an error (seccomp)."""
    architecture, links, rename = {
        "x86_64": (0xC000003E, (86, 265), 316),
        "aarch64": (0xC00000B7, (37,), 276),
    }[platform.machine()]
    load, equals, answer, allow, refuse = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050000

    def step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("HBBI", code, if_true, if_false, value)

    steps = [step(load, 4), step(equals, architecture, 1, 0), step(answer, allow), step(load, 0)]
    for call in links:
        steps += [step(equals, call, 0, 1), step(answer, refuse | errno.EPERM)]
    # The fifth argument of renameat2 holds its flags.
    steps += [step(equals, rename, 0, 3), step(load, 16 + 8 * 4), step(equals, 0, 1, 0)]
    steps += [step(answer, refuse | errno.EINVAL), step(answer, allow)]
    program = ctypes.create_string_buffer(b"".join(steps))

    class Filter(ctypes.Structure):
        _fields_ = (("steps", ctypes.c_ushort), ("program", ctypes.c_void_p))

    library = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_filter, by_program = 38, 22, 2
    wanted = Filter(len(steps), ctypes.addressof(program))
    if library.prctl(no_new_privileges, 1, 0, 0, 0) or library.prctl(
        set_filter, by_program, ctypes.byref(wanted), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "this kernel has no filters")


def create_once_more() -> None:
    real = os.open

    def lax(path: object, flags: int, *arguments: object, **options: object) -> int:
        return real(path, flags & ~os.O_EXCL, *arguments, **options)

    os.open = lax


WRAPPERS = {
    "poison": {"pipelines.images.decode": poison_decode, "pipelines.scoring.scorer": poison_limit},
    "hungry": {"pipelines.images.decode": hungry},
    "pause": {"pipelines.predictions.commit": pause},
    "foreign": {"pipelines.storage.processes": foreign_identity, "pipelines.storage.leases": impatient},
    "full": {"pipelines.storage.local_files": full},
    "hasty": {"pipelines.scoring.config": hasty, "pipelines.scoring.head": hasty_head},
    "slow": {"pipelines.storage.reading": slow},
    "receipts": {"pipelines.scoring.scorer": receipts},
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


if "nolinks" in FAULTS:
    refuse_links()
if "lax" in FAULTS:
    create_once_more()
for fault in FAULTS & WRAPPERS.keys():
    sys.meta_path.insert(0, Injector(dict(WRAPPERS[fault])))
