"""Small LiteRT models, drawn with the flatbuffer schema itself: no TensorFlow."""

from __future__ import annotations

from collections.abc import Callable

import pytest

MakeTflite = Callable[..., bytes]


@pytest.fixture(scope="session")
def make_tflite() -> MakeTflite:
    """Make a model that answers the mean of each channel: [1, side, side, 3] to [1, 3].

    Arguments: `side`; `dtype` (float32; uint8 or int8, quantised by `scale` and `zero_point`; `pixels`: uint8 without
    quantisation); `custom`: the name of a custom operator to put in the mean's place.
    """
    return _make_tflite


def _make_tflite(
    side: int = 8, dtype: str = "float32", scale: float = 1.0, zero_point: int = 0, custom: str | None = None
) -> bytes:
    import flatbuffers
    import numpy as np
    from ai_edge_litert import schema_py_generated as tfl

    def tensor(name: str, shape: list[int], kind: int, buffer: int = 0) -> tfl.TensorT:
        made = tfl.TensorT()
        made.name, made.shape, made.type, made.buffer = name, shape, kind, buffer
        if kind in (tfl.TensorType.UINT8, tfl.TensorType.INT8) and dtype != "pixels":
            made.quantization = tfl.QuantizationParametersT()
            made.quantization.scale, made.quantization.zeroPoint = [scale], [zero_point]
        return made

    def operator(index: int, inputs: list[int], outputs: list[int]) -> tfl.OperatorT:
        made = tfl.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = index, inputs, outputs
        return made

    kinds = {"float32": tfl.TensorType.FLOAT32, "int8": tfl.TensorType.INT8}
    given = kinds.get(dtype, tfl.TensorType.UINT8)
    inner = tfl.TensorType.FLOAT32 if dtype == "pixels" else given
    graph = tfl.SubGraphT()
    graph.tensors = [
        tensor("picture", [1, side, side, 3], given),
        tensor("axes", [2], tfl.TensorType.INT32, 1),
        tensor("answer", [1, 3], inner),
    ]
    mean = operator(0, [0, 1], [2])
    mean.builtinOptionsType, mean.builtinOptions = tfl.BuiltinOptions.ReducerOptions, tfl.ReducerOptionsT()
    graph.operators = [mean]
    if custom is not None:
        mean.builtinOptionsType, mean.builtinOptions = 0, None
    if dtype == "pixels":
        graph.tensors.append(tensor("real", [1, side, side, 3], inner))
        cast = operator(1, [0], [3])
        cast.builtinOptionsType, cast.builtinOptions = tfl.BuiltinOptions.CastOptions, tfl.CastOptionsT()
        mean.inputs = [3, 1]
        graph.operators = [cast, mean]
    graph.inputs, graph.outputs = [0], [2]

    codes = []
    for builtin in (tfl.BuiltinOperator.CUSTOM if custom else tfl.BuiltinOperator.MEAN, tfl.BuiltinOperator.CAST):
        code = tfl.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = builtin
        code.customCode = custom if builtin == tfl.BuiltinOperator.CUSTOM else None
        code.version = 1
        codes.append(code)
    buffers = [tfl.BufferT(), tfl.BufferT()]
    buffers[1].data = np.frombuffer(np.array([1, 2], np.int32).tobytes(), np.uint8)
    model = tfl.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, codes, [graph], buffers
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
