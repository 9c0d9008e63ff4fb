"""Pictures turned, shifted, sheared, zoomed and mirrored a little, as training sees them: one warp for all of it.

The limits mean what they mean to Keras' `ImageDataGenerator`, which the published recipes were trained with
(https://www.tensorflow.org/api_docs/python/tf/keras/preprocessing/image/ImageDataGenerator): each movement is drawn
from a uniform distribution, both axes have a shift and a zoom of their own, a picture is mirrored in one of two cases,
and the movements are put together as rotation, shift, shear, zoom about the middle of the picture. One thing differs:
shear is the tangent of the angle by which upright lines lean, and changes no height; Keras takes an angle and does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.images.members import load_cv2
from pipelines.images.samples import Bytes

FLIPS = ("none", "horizontal", "vertical", "both")
FILLS = ("nearest", "reflect", "wrap", "constant")


@dataclass(frozen=True)
class Movement:
    """What happens to one picture; the default is nothing.

    Attributes:
        degrees: Turned to the left, counter-clockwise.
        right: Share of the side by which it is shifted to the right.
        down: Likewise downwards.
        shear: Tangent of the angle by which its upright lines lean.
        across: Zoom of the horizontal axis: below 1 things become larger, above smaller.
        along: Likewise of the vertical axis.
        mirrored: Left and right change places.
        upside_down: Top and bottom do.
    """

    degrees: float = 0.0
    right: float = 0.0
    down: float = 0.0
    shear: float = 0.0
    across: float = 1.0
    along: float = 1.0
    mirrored: bool = False
    upside_down: bool = False

    def matrix(self, side: int) -> npt.NDArray[np.float64]:
        """Where each pixel of the answer comes from: [2, 3], (x, y, 1) of the answer to (x, y) of the picture.

        Args:
            side: Of the square picture, in pixels.
        """
        angle = math.radians(self.degrees)
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        lean = np.array([[1.0, -self.shear], [0.0, 1.0]])
        zoom = np.diag(
            [-self.across if self.mirrored else self.across, -self.along if self.upside_down else self.along]
        )
        linear = turn @ lean @ zoom
        middle = np.full(2, (side - 1) / 2)
        shift = turn @ np.array([self.right, self.down]) * side
        return np.column_stack([linear, middle - shift - linear @ middle])


@dataclass(frozen=True)
class Augmentation:
    """How far pictures are moved; every key of it is a recipe's.

    Attributes:
        rotation: Degrees to either side, 0–180.
        shift: Share of the side to either side, of both axes, 0–0.5.
        shear: Tangent to either side, 0–0.5.
        zoom: Factors from 1 - zoom to 1 + zoom, of each axis its own, 0–0.9.
        flip: One of `FLIPS`: what may be mirrored, each in one of two cases.
        fill: What lies outside the picture, one of `FILLS`: its nearest pixel, its mirror image (edge pixel doubled),
            its other side, or black.

    Raises:
        ValueError: For an unknown flip or fill.
    """

    rotation: float = 0.0
    shift: float = 0.0
    shear: float = 0.0
    zoom: float = 0.0
    flip: str = "none"
    fill: str = "nearest"

    def __post_init__(self) -> None:
        if self.flip not in FLIPS or self.fill not in FILLS:
            raise ValueError(f"flip {self.flip!r}, fill {self.fill!r}")

    @property
    def active(self) -> bool:
        """Whether it moves anything."""
        return bool(self.rotation or self.shift or self.shear or self.zoom or self.flip != "none")

    def draw(self, key: tuple[int, ...]) -> Movement:
        """Draw one picture's movement.

        Args:
            key: Non-negative numbers; the same give the same movement, whatever was drawn before. numpy may change what
                it draws with a release of its own, so a record of a training names its version.
        """
        # All numbers every time, so that a limit that is changed leaves the other movements as they were.
        drawn = np.random.default_rng(key).random(8)
        turn, right, down, lean, across, along = (float(number) for number in 2 * drawn[:6] - 1)
        return Movement(
            degrees=turn * self.rotation,
            right=right * self.shift,
            down=down * self.shift,
            shear=lean * self.shear,
            across=1 + across * self.zoom,
            along=1 + along * self.zoom,
            mirrored=self.flip in ("horizontal", "both") and bool(drawn[6] < 0.5),
            upside_down=self.flip in ("vertical", "both") and bool(drawn[7] < 0.5),
        )

    def apply(self, pixels: Bytes, key: tuple[int, ...]) -> Bytes:
        """Move one picture.

        Args:
            pixels: uint8 [S, S, 3].
            key: See `draw`.

        Returns:
            uint8 [S, S, 3], an array of its own.
        """
        return warp(pixels, self.draw(key), self.fill)


def warp(pixels: Bytes, movement: Movement, fill: str) -> Bytes:
    """Move a picture, interpolating linearly between its pixels.

    Args:
        pixels: uint8 [S, S, 3].
        movement: How.
        fill: One of `FILLS`.

    Returns:
        uint8 [S, S, 3], an array of its own.
    """
    cv2 = load_cv2()
    borders = {
        "nearest": cv2.BORDER_REPLICATE,
        "reflect": cv2.BORDER_REFLECT,
        "wrap": cv2.BORDER_WRAP,
        "constant": cv2.BORDER_CONSTANT,
    }
    side = pixels.shape[0]
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved: Bytes = cv2.warpAffine(pixels, movement.matrix(side), (side, side), flags=how, borderMode=borders[fill])
    return moved


def image_key(content_sha256: str) -> int:
    """A picture's part of a key: 64 bits of its content's hash, so that a copy is moved as its original is."""
    return int(content_sha256[:16], 16)
