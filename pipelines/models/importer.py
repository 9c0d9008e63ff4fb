"""Make a bundle of a model that somebody else made: `.keras`, `.h5` or `.tflite`."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.errors import ModelRefused, UsageError, first_line
from pipelines.models import plain_layers
from pipelines.models.arrays import read_shapes
from pipelines.models.backbones import apply_scaling, import_keras, weights_to_bytes
from pipelines.models.bundle import SCORER_FILE, SCORER_INT8_FILE, WEIGHTS_FILE, Bundle, write_bundle
from pipelines.models.compile import compile_graph, probabilities
from pipelines.models.declared import Declaration
from pipelines.models.golden import GOLDEN_FILE, golden_answers, golden_images, make_golden
from pipelines.models.positive import choose_positive
from pipelines.models.probe import probe
from pipelines.models.quiet import quiet_stderr
from pipelines.models.record import BundleSpec, ScorerEntry, check_classes, check_name
from pipelines.models.runtime import Scorer, ScorerIO
from pipelines.storage import files as storage
from pipelines.storage import paths
from pipelines.storage.scratch import Scratch

ARCHITECTURE_FILE = "architecture.json"
SUFFIXES = (".keras", ".h5", ".hdf5", ".tflite")


@dataclass(frozen=True)
class _Compiled:
    """What an import gives: the scorer, its precision, its answers to the golden images, and further files."""

    scorer: bytes
    io: ScorerIO
    precision: str
    answers: npt.NDArray[np.float32]
    further: Mapping[str, bytes]


def import_model(
    file: str,
    models: str,
    name: str,
    classes: Sequence[str],
    input_size: int,
    scaling: str,
    outputs: str = "probabilities",
    positive: Sequence[str] | None = None,
    *,
    preprocessing_id: str,
    preprocessing_contract: Mapping[str, Any] | None = None,
) -> Bundle:
    """Import a model as a new version.

    Args:
        file: A `.keras`, `.h5` or `.tflite` file, local or in a bucket.
        models: The MODELS folder.
        name: The bundle's name.
        classes: In the order of the model's outputs.
        input_size: Side of the square picture, in pixels.
        scaling: What the model wants its pixels to be, a name of `scaling.SCALINGS`; `none` if it scales them itself.
        outputs: `probabilities` or `logits`. One sigmoid unit is the second of two classes.
        positive: The positive classes; None for the rule of `positive.choose_positive`.
        preprocessing_id: Of the preprocessing that will feed it.
        preprocessing_contract: The same in words and numbers.

    Raises:
        UsageError: If the model is not what was declared, or a name is not valid.
        ModelRefused: If it is damaged, or holds what is not imported.
    """
    check_name(name)
    chosen = choose_positive(classes, positive) if len(classes) > 1 else ()
    check_classes(classes, chosen)
    declaration = Declaration(len(classes), input_size, scaling, outputs)
    with Scratch() as folder:
        copy = _copy(file, folder)
        made = _compile(copy, declaration, folder)
        digest = hashlib.sha256(copy.read_bytes()).hexdigest()
    target = SCORER_FILE if made.precision == "float32" else SCORER_INT8_FILE
    spec = BundleSpec(
        classes=tuple(classes),
        positive_classes=chosen,
        input_size=input_size,
        preprocessing_id=preprocessing_id,
        preprocessing_contract=dict(preprocessing_contract or {}),
        scorers={made.precision: ScorerEntry(target, made.io)},
        scorers_absent=_absent(made.precision),
        provenance={
            "kind": "import",
            "imported_file": paths.name(paths.canonical(file)),
            "imported_sha256": digest,
            "scaling": scaling,
            "outputs": outputs,
            "versions": {package: importlib.metadata.version(package) for package in ("ai-edge-litert", "keras")},
        },
    )
    files = {target: made.scorer, GOLDEN_FILE: make_golden({made.precision: made.answers}, input_size), **made.further}
    return write_bundle(models, name, spec, files)


def _absent(precision: str) -> dict[str, str]:
    if precision == "int8":
        return {"float32": "It was imported as a quantised .tflite, which is kept as it came."}
    return {"int8": "It was imported without one."}


def _copy(file: str, folder: Path) -> Path:
    """A private copy, so that what was checked is what is read."""
    place = paths.canonical(file)
    known = Path(paths.name(place))
    suffix = known.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"{place} is of no kind that is imported.", f"Give a file that ends in {', '.join(SUFFIXES)}.")
    copy = folder / f"{known.stem}{suffix}"
    try:
        storage.fetch(place, str(copy))
    except FileNotFoundError as error:
        raise UsageError(f"The model file {place} is not there.", "Give a file that exists.") from error
    return copy


def _compile(copy: Path, declaration: Declaration, folder: Path) -> _Compiled:
    if copy.suffix == ".tflite":
        model = copy.read_bytes()
        probed = probe(model, declaration)
        precision = "float32" if probed.io.input_dtype == "float32" or _ours(probed.io) else "int8"
        return _Compiled(model, probed.io, precision, probed.answers, {})
    network, config = _open_archive(copy, folder) if copy.suffix == ".keras" else _open_legacy(copy)
    return _compile_keras(network, config, declaration)


def _ours(io: ScorerIO) -> bool:
    """A graph that takes the pixels themselves and answers in float32, as those that `compile` makes."""
    return io.pixels_go_in_unchanged and io.output_quantisation is None


def _open_archive(copy: Path, folder: Path) -> tuple[Any, dict[str, Any]]:
    config = plain_layers.read_keras_archive(copy)
    weights = folder / "extracted.weights.h5"
    plain_layers.extract_weights(copy, weights)
    read_shapes(weights)  # refuses links into other files
    keras = import_keras()
    with _keras_refusals(), quiet_stderr():
        network = keras.saving.deserialize_keras_object(config, safe_mode=True)
        network.load_weights(str(weights))
    return network, config


def _open_legacy(copy: Path) -> tuple[Any, dict[str, Any]]:
    config = plain_layers.check_legacy_file(copy)
    read_shapes(copy)
    keras = import_keras()
    with _keras_refusals(), quiet_stderr():
        network = keras.saving.load_model(str(copy), compile=False, safe_mode=True)
    return network, config


@contextlib.contextmanager
def _keras_refusals() -> Iterator[None]:
    """Turn whatever Keras raises at a strange file into one refusal."""
    try:
        yield
    except Exception as error:
        raise ModelRefused(
            f"Keras cannot build the model: {first_line(error)[:200]}.",
            "Save it again with a current Keras, or convert it to .tflite.",
        ) from error


def _compile_keras(network: Any, config: dict[str, Any], declaration: Declaration) -> _Compiled:
    shape, answer_shape = network.input_shape, network.output_shape
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[3] != 3:
        raise UsageError(
            f"The model takes input of shape {shape}, not [None, size, size, 3].",
            "Only one colour picture with the channels last is scored.",
        )
    if not isinstance(answer_shape, tuple) or len(answer_shape) != 2 or answer_shape[1] is None:
        raise UsageError(f"The model answers the shape {answer_shape}, not [None, classes].", "Import a classifier.")
    declaration.check_side((shape[1], shape[2]))
    declaration.check_units(int(answer_shape[1]))

    def raw(pixels: Any) -> Any:
        return network(apply_scaling(pixels, declaration.numbers), training=False)

    size = declaration.input_size
    with _keras_refusals():
        answers = np.asarray(raw(golden_images(size).astype(np.float32)))
    if not np.isfinite(answers).all():
        raise ModelRefused("The model answers numbers that are not finite.", "Check the scaling and its weights.")
    declaration.check_answers(answers, 1e-3)
    scorer = compile_graph(lambda pixels: probabilities(raw(pixels), declaration.outputs), size, declaration.classes)
    io = ScorerIO(size, declaration.classes)
    further = {
        WEIGHTS_FILE: weights_to_bytes(network),
        ARCHITECTURE_FILE: (json.dumps(config, sort_keys=True, indent=1) + "\n").encode(),
    }
    return _Compiled(scorer, io, "float32", golden_answers(Scorer(scorer, io), size), further)
