"""Find a backbone's published weights, and say at once what to fetch where there are none.

Looked for in the folder `NIGHTREAD_WEIGHTS`, then in Keras' own cache, then on the internet. A machine without
internet must hear within seconds what to do, so the network is probed briefly before anything is downloaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import threading
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UsageError

FOLDER_VARIABLE = "NIGHTREAD_WEIGHTS"
PROBE_SECONDS = 4.0
_BASE = "https://storage.googleapis.com/"
_PIECE = 1 << 20


@dataclass(frozen=True)
class PublishedWeights:
    """One weights file that Keras publishes.

    Attributes:
        file: Its name.
        url: Where it is published.
        md5: The hash that Keras checks; None where Keras publishes none.
        also: Other names under which the same weights are accepted in the folders.
    """

    file: str
    url: str
    md5: str | None
    also: tuple[str, ...] = ()


def keras_cache() -> Path:
    """The folder in which Keras keeps downloaded weights."""
    return Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models"


def weight_folders() -> list[Path]:
    """Where weights are looked for, in order."""
    named = os.environ.get(FOLDER_VARIABLE)
    return [*([Path(named).expanduser()] if named else []), keras_cache()]


def published_weights(backbone: str, alpha: float, input_size: int) -> tuple[PublishedWeights, ...]:
    """The ImageNet weights without top for a backbone, the best fitting first.

    Raises:
        UsageError: If none are published for this alpha.
    """
    if backbone != "mobilenet_v2":
        return (_FIXED[backbone],)
    alphas = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
    if alpha not in alphas:
        raise UsageError(
            f"There are no ImageNet weights of mobilenet_v2 with alpha {alpha}.",
            f"Say alpha {', '.join(str(value) for value in alphas)}, or --weights none.",
        )
    # Published per size; those of 224 px fit every size and are what Keras takes where there are no others.
    sides = [input_size, 224] if input_size in (96, 128, 160, 192) else [224]
    return tuple(_mobilenet(float(alpha), side) for side in sides)


def _mobilenet(alpha: float, side: int) -> PublishedWeights:
    file = f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_{side}_no_top.h5"
    url = f"{_BASE}tensorflow/keras-applications/mobilenet_v2/{file}"
    return PublishedWeights(file, url, None, (f"mobilenet_v2_{alpha}_{side}_no_top.weights.h5",))


_FIXED = {
    "resnet50_v2": PublishedWeights(
        "resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
        f"{_BASE}tensorflow/keras-applications/resnet/resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "fac2f116257151a9d068a22e544a4917",
    ),
    "efficientnet_v2_b0": PublishedWeights(
        "efficientnetv2-b0_notop.h5",
        f"{_BASE}tensorflow/keras-applications/efficientnet_v2/efficientnetv2-b0_notop.h5",
        "893217f2bb855e2983157299931e43ff",
    ),
    "vgg16": PublishedWeights(
        "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
        f"{_BASE}tensorflow/keras-applications/vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "6d6bbae143d832006294945121d1f1fc",
    ),
}


def find_published(backbone: str, alpha: float, input_size: int) -> Path | None:
    """The file where it already lies on this machine; None where it does not.

    Raises:
        UsageError: If a file of this name is there but is not the published one, or none is published.
    """
    for weights in published_weights(backbone, alpha, input_size):
        for folder in weight_folders():
            for name in (weights.file, *weights.also):
                if (folder / name).is_file():
                    _check_hash(folder / name, weights if name == weights.file else None)
                    return folder / name
    return None


def obtain_published(backbone: str, alpha: float, input_size: int) -> Path:
    """The file, downloaded into Keras' cache where it is nowhere else.

    Raises:
        UsageError: Without internet, at once, with the file, its hash and where to put it; or as `find_published`.
    """
    found = find_published(backbone, alpha, input_size)
    if found is not None:
        return found
    weights = published_weights(backbone, alpha, input_size)[0]
    if not _reachable(weights.url):
        raise _fetch_it_yourself(weights)
    target = keras_cache() / weights.file
    try:
        _download(weights.url, target)
    except OSError as error:
        raise _fetch_it_yourself(weights) from error
    _check_hash(target, weights)
    return target


def _fetch_it_yourself(weights: PublishedWeights) -> UsageError:
    digest = f"md5 {weights.md5}" if weights.md5 else "Keras publishes no hash for it"
    folder = os.environ.get(FOLDER_VARIABLE)
    place = f"into {folder}" if folder else f"into a folder that {FOLDER_VARIABLE} names, or into {keras_cache()}"
    return UsageError(
        f"The ImageNet weights {weights.file} are not on this machine and {weights.url} cannot be reached.",
        f"Fetch {weights.url} ({digest}) on another machine and put it {place}; or say --weights none.",
    )


def _check_hash(path: Path, weights: PublishedWeights | None) -> None:
    if weights is None or weights.md5 is None:
        return
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if digest != weights.md5:
        raise UsageError(
            f"{path} is not the published file: its md5 is {digest}, not {weights.md5}.", f"Fetch {weights.url} again."
        )


def _reachable(url: str) -> bool:
    """Whether the server answers within `PROBE_SECONDS`, name resolution and proxies included."""
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(request, timeout=PROBE_SECONDS):
            answered.set()

    # In a thread, since name resolution has no time limit of its own.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PROBE_SECONDS)
    return answered.is_set()


def _download(url: str, target: Path) -> None:
    """Fetch into a temporary name beside the target, then rename: an interrupted download leaves no half file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        with urllib.request.urlopen(url, timeout=30) as answer, temporary.open("wb") as file:
            while piece := answer.read(_PIECE):
                file.write(piece)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
