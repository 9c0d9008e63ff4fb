"""What a network wants its pixels to be: names for the usual input scalings."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.errors import UsageError

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Scaling:
    """Per channel, in RGB order: input = pixel * scale + offset, pixels being 0-255; then RGB or BGR."""

    scale: Triple
    offset: Triple
    reverse_channels: bool = False


_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)
_MINUS_ONE_TO_ONE = Scaling((1 / 127.5,) * 3, (-1.0,) * 3)

SCALINGS: dict[str, Scaling] = {
    "0..1": Scaling((1 / 255,) * 3, (0.0,) * 3),
    "-1..1": _MINUS_ONE_TO_ONE,
    "none": Scaling((1.0,) * 3, (0.0,) * 3),
    "mobilenet_v2": _MINUS_ONE_TO_ONE,
    "resnet50_v2": _MINUS_ONE_TO_ONE,
    "efficientnet_v2_b0": Scaling(
        (1 / (255 * _DEVIATION[0]), 1 / (255 * _DEVIATION[1]), 1 / (255 * _DEVIATION[2])),
        (-_MEAN[0] / _DEVIATION[0], -_MEAN[1] / _DEVIATION[1], -_MEAN[2] / _DEVIATION[2]),
    ),
    # As keras.applications.vgg16.preprocess_input: BGR, the ImageNet mean of each channel taken off, 0-255.
    "vgg16": Scaling((1.0,) * 3, (-123.68, -116.779, -103.939), reverse_channels=True),
}


def scaling_of(name: str) -> Scaling:
    """The scaling of this name.

    Raises:
        UsageError: If there is none; lists the names.
    """
    if name not in SCALINGS:
        raise UsageError(f"There is no scaling {name!r}.", f"Say one of: {', '.join(SCALINGS)}.")
    return SCALINGS[name]
