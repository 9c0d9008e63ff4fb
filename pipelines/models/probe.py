"""Try somebody else's `.tflite` in a process of its own, with limits on time and memory.

`python -m pipelines.models.probe MODEL DECLARATION ANSWER` writes a JSON answer. A file that crashes, hangs or eats
memory takes this process with it and not the one that asked.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.errors import ModelRefused, NightreadError, UsageError
from pipelines.models.declared import Declaration
from pipelines.models.golden import golden_answers, golden_images
from pipelines.models.operators import check_operators
from pipelines.models.quiet import quiet_stderr
from pipelines.models.runtime import Quantisation, Scorer, ScorerIO, Vector
from pipelines.storage.scratch import Scratch

SECONDS = 120
BASE_BYTES = 4 * 1024**3
# LiteRT packs the weights anew beside the file's own copy.
BYTES_PER_MODEL_BYTE = 6
_MAX_ANSWER_BYTES = 64 * 1024**2
_CURE = "It cannot be used; convert it again from the model that it was made of."


@dataclass(frozen=True)
class Probed:
    """What the child found: how the model is called, and its answers to the golden images, float32 [6, K]."""

    io: ScorerIO
    answers: npt.NDArray[np.float32]


def probe(model: bytes, declaration: Declaration, seconds: float = SECONDS) -> Probed:
    """Try a `.tflite` in a child process.

    Args:
        model: Its bytes.
        declaration: What the person says about it.
        seconds: After which the child is killed.

    Raises:
        ModelRefused: If it uses foreign operators, crashes, takes too long or too much memory, or answers what is
            not finite.
        UsageError: If it is not what was declared.
    """
    with Scratch() as folder:
        given, answer = folder / "model.tflite", folder / "answer.json"
        given.write_bytes(model)
        command = [
            sys.executable,
            "-m",
            "pipelines.models.probe",
            str(given),
            json.dumps(asdict(declaration)),
            str(answer),
        ]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, env=_environment(), check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ModelRefused(
                f"The model took longer than {seconds:g} s to load and answer six images.", _CURE
            ) from error
        if done.returncode != 0 or not answer.is_file() or answer.stat().st_size > _MAX_ANSWER_BYTES:
            raise ModelRefused(f"Trying the model killed the process that tried it (exit {done.returncode}).", _CURE)
        value = json.loads(answer.read_bytes())
    if "refused" in value:
        raise ModelRefused(*value["refused"])
    if "usage" in value:
        raise UsageError(*value["usage"])
    return Probed(ScorerIO.from_json(value["io"]), np.array(value["answers"], dtype=np.float32))


def _environment() -> dict[str, str]:
    """The child finds our package wherever the parent found it."""
    root = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}


def examine(model: bytes, declaration: Declaration) -> Probed:
    """What the child does: load, compare with the declaration, answer the golden images twice.

    Raises:
        ModelRefused: See `probe`.
        UsageError: See `probe`.
    """
    check_operators(model)
    io, units = _io_of(model, declaration)
    raw_io = replace(io, outputs="features", size=units, sigmoid_unit=False)
    raw = golden_answers(Scorer(model, raw_io), io.input_size)
    declaration.check_answers(raw, 1e-3 if io.output_quantisation is None else 0.05)
    scorer = Scorer(model, io)
    answers = golden_answers(scorer, io.input_size)
    _check_forgetful(scorer, answers)
    return Probed(io, answers)


def _check_forgetful(scorer: Scorer, answers: npt.NDArray[np.float32]) -> None:
    """Refuse a model whose answer depends on the images before: in a night their order is nobody's choice."""
    backwards: list[Vector] = [scorer(picture) for picture in golden_images(scorer.io.input_size)[::-1]]
    if not np.allclose(np.stack(backwards[::-1]), answers, atol=1e-6):
        raise ModelRefused("The model's answer to an image depends on the images before it.", _CURE)


def _io_of(model: bytes, declaration: Declaration) -> tuple[ScorerIO, int]:
    """How the model is called, and how many numbers it answers."""
    from ai_edge_litert.interpreter import Interpreter

    try:
        with quiet_stderr():
            interpreter = Interpreter(model_content=model, num_threads=1)
            inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    except (ValueError, RuntimeError) as error:
        raise ModelRefused("LiteRT cannot load the model.", _CURE) from error
    if len(inputs) != 1 or len(outputs) != 1:
        raise UsageError(
            f"The model has {len(inputs)} inputs and {len(outputs)} outputs.",
            "Only one picture in, one answer out is scored.",
        )
    _check_picture([int(side) for side in inputs[0]["shape_signature"]], declaration)
    units = int(np.prod([side for side in outputs[0]["shape_signature"] if side > 0]))
    declaration.check_units(units)
    scaling = declaration.numbers
    taken = _quantisation(inputs[0])
    dtype = np.dtype(inputs[0]["dtype"]).name
    if dtype not in ("float32", "uint8", "int8") or np.dtype(outputs[0]["dtype"]).name not in (
        "float32",
        "uint8",
        "int8",
    ):
        raise UsageError(f"The model takes {dtype}.", "Only float32, uint8 and int8 are known as input and output.")
    if dtype != "float32" and taken is None and (dtype == "int8" or declaration.scaling != "none"):
        raise UsageError(
            f"The model takes {dtype} pixels without saying what they stand for.",
            "Say --scaling none for a uint8 model.",
        )
    io = ScorerIO(
        input_size=declaration.input_size,
        size=declaration.classes,
        input_dtype=dtype,
        scale=scaling.scale,
        offset=scaling.offset,
        reverse_channels=scaling.reverse_channels,
        input_quantisation=taken,
        output_quantisation=_quantisation(outputs[0]),
        outputs=declaration.outputs,
        sigmoid_unit=units == 1,
    )
    return io, units


def _check_picture(signature: list[int], declaration: Declaration) -> None:
    if len(signature) != 4 or signature[3] != 3:
        raise UsageError(
            f"The model takes input of shape {signature}, not [1, size, size, 3].",
            "Only colour pictures with the channels last (NHWC) are scored.",
        )
    if signature[0] not in (1, -1):
        raise UsageError(f"The model takes {signature[0]} pictures at once.", "Convert it for one at a time.")
    height, width = (side if side > 0 else None for side in signature[1:3])
    declaration.check_side((height, width))


def _quantisation(details: dict[str, Any]) -> Quantisation | None:
    scale, zero_point = details["quantization"]
    return None if float(scale) == 0.0 else Quantisation(float(scale), int(zero_point))


def _limit(model_bytes: int) -> None:
    memory = BASE_BYTES + BYTES_PER_MODEL_BYTE * model_bytes
    for kind, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, _MAX_ANSWER_BYTES),
    ):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def main(arguments: list[str]) -> None:
    """The child: MODEL DECLARATION ANSWER."""
    model = Path(arguments[0]).read_bytes()
    _limit(len(model))
    try:
        found = examine(model, Declaration(**json.loads(arguments[1])))
        value: dict[str, Any] = {
            "io": found.io.to_json(),
            "answers": [[float(x) for x in row] for row in found.answers],
        }
    except NightreadError as error:
        value = {"usage" if isinstance(error, UsageError) else "refused": [error.message, error.cure]}
    except MemoryError:
        value = {"refused": ["The model needs more memory than a scorer may take.", _CURE]}
    Path(arguments[2]).write_text(json.dumps(value))


if __name__ == "__main__":
    main(sys.argv[1:])
