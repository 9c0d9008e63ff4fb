"""Which operators a `.tflite` file uses, read from the file itself without running it."""

from __future__ import annotations

import struct

from pipelines.errors import ModelRefused

_CUSTOM = 32
_IDENTIFIER = b"TFL3"
_MAX_CODES = 10_000
_CURE = "Convert the model again with the built-in operators of LiteRT only."


def check_operators(model: bytes) -> None:
    """Refuse a file that is no LiteRT model or needs operators that LiteRT does not bring.

    Raises:
        ModelRefused: If it is damaged, or uses custom or Flex (TensorFlow) operators; names them.
    """
    if model[4:8] != _IDENTIFIER:
        raise ModelRefused("The file is no LiteRT model.", "Give a .tflite file as TFLiteConverter writes it.")
    try:
        foreign = _foreign_operators(model)
    except (struct.error, IndexError, ValueError, TypeError, AttributeError) as error:
        raise ModelRefused("The LiteRT model is damaged.", "Copy or convert it again.") from error
    if foreign:
        kind = "Flex (TensorFlow)" if any(name.startswith("Flex") for name in foreign) else "custom"
        raise ModelRefused(f"The model uses {kind} operators: {', '.join(sorted(foreign))}.", _CURE)


def _foreign_operators(model: bytes) -> set[str]:
    from ai_edge_litert.schema_py_generated import Model

    root = Model.GetRootAs(model, 0)
    count = root.OperatorCodesLength()
    if count > _MAX_CODES:
        raise ValueError(count)
    foreign = set()
    for index in range(count):
        code = root.OperatorCodes(index)
        name = code.CustomCode()
        if name is not None or _CUSTOM in (code.BuiltinCode(), code.DeprecatedBuiltinCode()):
            foreign.add(
                "".join(letter for letter in (name or b"?").decode(errors="replace") if letter.isprintable())[:60]
            )
    return foreign


def operator_outputs(model: bytes) -> list[tuple[bool, str]]:
    """The operators of a model of ours, in the order in which they run.

    Returns:
        For each, whether it is a convolution, and the name of its first output.
    """
    from ai_edge_litert.schema_py_generated import BuiltinOperator, Model

    root = Model.GetRootAs(model, 0)
    graph = root.Subgraphs(0)
    convolutions = (BuiltinOperator.CONV_2D, BuiltinOperator.DEPTHWISE_CONV_2D)
    found = []
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        code = root.OperatorCodes(operator.OpcodeIndex()).BuiltinCode()
        found.append((code in convolutions, graph.Tensors(operator.Outputs(0)).Name().decode()))
    return found
