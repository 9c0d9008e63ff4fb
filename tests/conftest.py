"""What tests of every kind share."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

# These machines are shared: how long an example takes says nothing about the code.
settings.register_profile("nightread", deadline=None)
settings.load_profile("nightread")

CHECKOUT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unit tests first, before anything heavy is loaded; then slow files, so that nobody waits for one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (CHECKOUT / "tests" / "unit" not in item.path.parents, item.path not in slow))


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of this checkout."""
    return CHECKOUT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the checkout, or where NIGHTREAD_SHARED_DATA says; skips without it."""
    folder = Path(os.environ.get("NIGHTREAD_SHARED_DATA", CHECKOUT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no folder shared/data beside the checkout; NIGHTREAD_SHARED_DATA names another")
    return folder


MAKE_MODEL = """
import sys
from dataclasses import asdict
import numpy as np
from pipelines.images.preprocess import Preprocessing
from pipelines.models import backbones, compile, golden, heads
from pipelines.models.bundle import WEIGHTS_FILE, write_bundle
from pipelines.models.rebuild import joined
from pipelines.models.record import BundleSpec, ScorerEntry
from pipelines.models.runtime import Scorer, ScorerIO
models, size = sys.argv[1], 96
images = np.random.default_rng(0).integers(0, 255, (16, size, size, 3), dtype=np.uint8)
spec, head_spec = backbones.BackboneSpec("mobilenet_v2", 0.35, size), heads.HeadSpec(pooling="avg", classes=2)
backbone = backbones.build_backbone(spec, "none", seed=1, calibration_images=images)
for name, seed in (("cells", 1), ("other", 2)):
    head = heads.build_head(head_spec, backbone.output_shape[-1:], seed=seed)
    data, io = compile.compile_scorer(backbone, head, 1.0, size), ScorerIO(size, 2)
    answers = golden.golden_answers(Scorer(data, io), size)
    network, files = {}, {"scorer.tflite": data, golden.GOLDEN_FILE: golden.make_golden({"float32": answers}, size)}
    if name == "other":  # its layers are known; those of the first are not, which saves reports their Grad-CAM
        network = {"backbone": asdict(spec), "head": {**asdict(head_spec), "dense_units": []}}
        files[WEIGHTS_FILE] = backbones.weights_to_bytes(joined(backbone, head, "avg"))
    write_bundle(models, name, BundleSpec(
        ("benign", "malignant"), ("malignant",), size, Preprocessing(size).id,
        {"float32": ScorerEntry("scorer.tflite", io)},
        thresholds={"image": {"threshold": 0.5, "target_sensitivity": 0.95}}, **network,
    ), files)
"""


def made_from() -> str:
    """A hash of what the tests' models are made from: our code, the libraries and the script."""
    digest = hashlib.sha256(MAKE_MODEL.encode() + sys.version.encode())
    sources = sorted(path for room in ("images", "models") for path in (CHECKOUT / "pipelines" / room).glob("*.py"))
    for path in (*sources, CHECKOUT / "requirements.lock"):
        digest.update(path.name.encode() + path.read_bytes())
    for library in ("keras", "tensorflow", "ai-edge-litert"):
        digest.update(importlib.metadata.version(library).encode())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MODELS folder with the real but small models `cells` and `other`: MobileNetV2 0.35, 96 px, seeded weights.

    They are made once for all processes that test, and again when what they are made from is another.
    """
    kept = CHECKOUT / ".pytest_cache" / "models"
    kept.mkdir(parents=True, exist_ok=True)
    made = kept / made_from()
    with (kept / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            for old in (path for path in kept.iterdir() if path.is_dir()):
                shutil.rmtree(old)
            _make_models(kept / "unfinished")
            (kept / "unfinished").rename(made)
        return shutil.copytree(made, tmp_path_factory.mktemp("models") / "MODELS")


def _make_models(folder: Path) -> None:
    """Draw and compile the models in a process of its own, which loads TensorFlow."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", MAKE_MODEL, str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


COMMAND = [sys.executable, "-m", "jobs"]


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def answer(self) -> Any:
        """The one JSON value of `--json`."""
        return json.loads(self.out)


@pytest.fixture(scope="session")
def environment(checkout: Path) -> dict[str, str]:
    """Environment of the commands: this checkout's code, nothing of the developer's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NIGHTREAD_", "RAY_", "AWS_"))}
    return {**kept, "PYTHONPATH": str(checkout), "TF_CPP_MIN_LOG_LEVEL": "3"}


HOLD_RAY = """
import os
import sys
from cluster.session import start_or_join
with start_or_join("local"):
    import ray
    print(ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"], flush=True)
    sys.stdin.read()
"""


JOINING = (("score",), ("evaluate",), ("models", "calibrate"), ("train",), ("tune",))
KEYS = {"AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret"}
"""Of the tests' S3 server, which no command hands to the cluster that it joins."""


@pytest.fixture(scope="session")
def shared_ray(environment: dict[str, str]) -> Iterator[Callable[[], dict[str, str]]]:
    """Variables with which a command joins one Ray, with a token, that lives as long as the tests of this process.

    It starts when it is first asked for: a Ray of its own costs a command more than scoring a few images does.
    """
    held: list[subprocess.Popen[str]] = []
    joining: dict[str, str] = {}

    def variables() -> dict[str, str]:
        if not joining:
            command = [sys.executable, "-c", HOLD_RAY]
            process = subprocess.Popen(
                command, env=environment | KEYS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            held.append(process)
            assert process.stdout is not None
            address, _, token = process.stdout.readline().strip().partition(" ")
            assert token, "the Ray that the tests share did not start"
            joining.update({f"NIGHTREAD_{'_'.join(words).upper()}_ADDRESS": address for words in JOINING})
            joining.update({"NIGHTREAD_SCORE_ACTORS": "1", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token})
        return joining

    yield variables
    for process in held:  # it ends its Ray when nobody can write to it any more, however these tests end
        process.communicate(timeout=60)


@pytest.fixture(scope="session")
def nightread(environment: dict[str, str], shared_ray: Callable[[], dict[str, str]]) -> Callable[..., Done]:
    """Runs one command to its end: in the shared Ray, or with variables of its own, which only a Ray of its own sees.

    `env={}` gives a command a Ray of its own where a test is about that.
    """

    def run(*arguments: object, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Done:
        if env is None:
            env = shared_ray() if {arguments[:1], arguments[:2]} & set(JOINING) else {}
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            env={**environment, **env},
            cwd=cwd,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=280,
            check=False,
            umask=0,  # as of a careless timer: what is closed to others is so by the command's own doing
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def open_to_others() -> Callable[..., list[str]]:
    """Names of what others could read, or the group could change, in some folders."""

    def found(*folders: Path) -> list[str]:
        places = [place for folder in folders for place in (folder, *folder.rglob("*"))]
        assert len(places) > len(folders)
        return [f"{place}: {place.lstat().st_mode & 0o777:o}" for place in places if place.lstat().st_mode & 0o027]

    return found


@pytest.fixture(scope="session")
def draw() -> Callable[..., list[Path]]:
    """Draws small JPEGs, each different, into a folder."""
    import cv2

    def images(folder: Path, count: int, start: int = 0) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for number in range(start, start + count):
            generator = np.random.default_rng(number)
            coarse = generator.integers(0, 255, (9, 12, 3), dtype=np.uint8)
            picture = cv2.resize(coarse, (160, 120), interpolation=cv2.INTER_CUBIC)
            path = folder / f"b{number:05d}.jpg"
            temporary = path.with_suffix(".part")
            temporary.write_bytes(cv2.imencode(".jpg", picture)[1].tobytes())
            temporary.rename(path)
            paths.append(path)
        return paths

    return images


@pytest.fixture(scope="session")
def rows_of() -> Callable[[Path], list[dict[str, Any]]]:
    """All rows of a results folder, read by PyArrow from the table's log: not through our own code."""
    import pyarrow.dataset as ds
    from deltalake import DeltaTable

    def rows(results: Path) -> list[dict[str, Any]]:
        files = DeltaTable(str(results / "predictions")).file_uris()
        return ds.dataset(files).to_table().to_pylist() if files else []

    return rows
