"""Draw one field of stained tissue: haematoxylin nuclei over eosin stroma, by the law of light absorption.

Each field has a latent grade. Benign and malignant grades come from two normal distributions that overlap
(`GRADE_GAP` standard deviations apart), so that no reader, however good, separates the classes completely:
the best possible ROC AUC is Φ(GRADE_GAP / √2). The grade moves nuclear size, crowding, irregularity and staining,
each with noise of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

GRADE_GAP = 3.0
"""Distance of the two classes' mean grades in standard deviations: the best possible ROC AUC is 0.983."""

# Optical density of the two stains in R, G, B: Ruifrok and Johnston, Anal Quant Cytol Histol 23 (2001).
HAEMATOXYLIN = np.array([0.65, 0.70, 0.29], np.float32)
EOSIN = np.array([0.17, 0.99, 0.30], np.float32)

_SHIFT = 4
"""Fractional bits of polygon corners, so that small nuclei stay round."""


@dataclass(frozen=True)
class Field:
    """What a field of tissue looks like.

    Attributes:
        width: Pixels.
        height: Pixels.
        radius: Mean nuclear radius as a share of the height.
        spread: Relative standard deviation of the radii.
        crowding: Share of the area under nuclei, before overlap.
        irregularity: Relative amplitude of a nucleus' outline.
        nuclear_stain: Haematoxylin density of a nucleus.
        eosin_stain: Eosin density of the stroma.
    """

    width: int
    height: int
    radius: float
    spread: float
    crowding: float
    irregularity: float
    nuclear_stain: float
    eosin_stain: float


def draw_grade(malignant: bool, rng: np.random.Generator) -> float:
    """Draw a latent grade, unit variance, means ±GRADE_GAP / 2."""
    return float(rng.normal(GRADE_GAP / 2 if malignant else -GRADE_GAP / 2, 1.0))


def field_of_grade(grade: float, width: int, height: int, rng: np.random.Generator) -> Field:
    """Turn a grade into a look; every property follows the grade with some noise of its own."""

    def follow(at_zero: float, slope: float, low: float, high: float) -> float:
        return float(np.clip(at_zero + slope * (grade + rng.normal(0, 0.35)), low, high))

    return Field(
        width=width,
        height=height,
        radius=follow(0.0245, 0.0030, 0.012, 0.042),
        spread=follow(0.20, 0.05, 0.05, 0.50),
        crowding=follow(0.20, 0.045, 0.06, 0.45),
        irregularity=follow(0.12, 0.035, 0.02, 0.32),
        nuclear_stain=follow(1.05, 0.10, 0.55, 1.70),
        # The stain of a laboratory varies for reasons that have nothing to do with the disease.
        eosin_stain=float(np.clip(rng.normal(0.42, 0.06), 0.25, 0.65)),
    )


def draw_field(field: Field, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a field.

    Args:
        field: What it looks like.
        rng: Where every cell lies.

    Returns:
        uint8 `[height, width, 3]`, RGB.
    """
    eosin = _stroma(field, rng)
    nuclei = _nuclei(field, rng)
    unit = max(1.0, field.height / 240)
    chromatin = _noise(field, rng, 70) * 0.22 + _noise(field, rng, 18) * 0.12
    haematoxylin = cv2.GaussianBlur(nuclei, (0, 0), 0.55 * unit) * (1.0 + chromatin) + 0.03
    density = haematoxylin[..., None] * HAEMATOXYLIN + eosin[..., None] * EOSIN
    light = 246.0 * np.exp(-density, dtype=np.float32)
    light += rng.normal(0, 1.5, field.height * field.width).astype(np.float32).reshape(field.height, field.width, 1)
    return np.clip(light, 0, 255).astype(np.uint8)


def _noise(field: Field, rng: np.random.Generator, cells: int) -> NDArray[np.float32]:
    """Smooth noise of unit variance, `cells` grains high; float32 `[height, width]`."""
    rows, columns = cells, max(2, round(cells * field.width / field.height))
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    return np.asarray(cv2.resize(coarse, (field.width, field.height), interpolation=cv2.INTER_CUBIC), np.float32)


def _stroma(field: Field, rng: np.random.Generator) -> NDArray[np.float32]:
    """Eosin density: fibres along a slowly turning direction, with gaps (lumina, torn tissue) where it is white."""
    rows, columns = np.mgrid[0 : field.height, 0 : field.width].astype(np.float32) / field.height
    angle = rng.uniform(0, np.pi)
    warp = _noise(field, rng, 4)
    phase = (rows * np.sin(angle) + columns * np.cos(angle)) * 130 + warp * 9
    fibres = np.sin(phase) * 0.08 + _noise(field, rng, 40) * 0.13 + _noise(field, rng, 6) * 0.16
    density = field.eosin_stain * (1.0 + fibres)
    gaps = 1.0 / (1.0 + np.exp(np.clip((_noise(field, rng, 5) - 1.75) * 14, -30, 30)))
    return np.asarray(np.clip(density, 0.03, None) * (0.08 + 0.92 * gaps), np.float32)


def _nuclei(field: Field, rng: np.random.Generator) -> NDArray[np.float32]:
    """Haematoxylin density: irregular ovals with a darker rim and, in the large ones, a nucleolus."""
    height, width = field.height, field.width
    aspect = width / height
    count = max(4, round(field.crowding * aspect / (np.pi * field.radius**2)))
    radii = field.radius * np.clip(rng.normal(1.0, field.spread, count), 0.45, 2.2)
    centres = _spread_out(np.stack([rng.uniform(0, aspect, count), rng.uniform(0, 1, count)], axis=1), radii)
    stains = field.nuclear_stain * rng.normal(1.0, 0.15, count).clip(0.5, 1.5)
    outlines = _outlines(centres, radii, field.irregularity, rng)
    inner = centres[:, None, :] + (outlines - centres[:, None, :]) * 0.80
    canvas = np.zeros((height, width), np.float32)
    scale = height * (1 << _SHIFT)
    for index in range(count):
        stain = float(stains[index])
        for points, level in ((outlines[index], stain), (inner[index], stain * 0.84)):
            cv2.fillPoly(canvas, [(points * scale).astype(np.int32)], level, cv2.LINE_8, _SHIFT)
        if radii[index] > field.radius:
            spot = centres[index] + rng.normal(0, 0.25, 2) * radii[index]
            corner = (int(spot[0] * scale), int(spot[1] * scale))
            cv2.circle(canvas, corner, int(radii[index] * 0.20 * scale), stain * 1.3, -1, cv2.LINE_8, _SHIFT)
    return canvas


def _spread_out(centres: NDArray[np.float64], radii: NDArray[np.float64]) -> NDArray[np.float64]:
    """Push overlapping nuclei apart, two rounds: cells press on each other but seldom lie on top."""
    for _ in range(2):
        offset = centres[:, None, :] - centres[None, :, :]
        distance = np.linalg.norm(offset, axis=2) + 1e-9
        overlap = np.clip(1.15 * (radii[:, None] + radii[None, :]) - distance, 0, None)
        np.fill_diagonal(overlap, 0)
        centres = centres + 0.5 * (offset / distance[..., None] * overlap[..., None]).sum(axis=1)
    return centres


def _outlines(
    centres: NDArray[np.float64], radii: NDArray[np.float64], irregularity: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Corners of every nucleus, float64 `[N, 20, 2]`: an oval with three waves of random phase."""
    count = len(radii)
    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    radius = np.ones((count, 20))
    for wave in (2, 3, 5):
        amplitude = irregularity * rng.normal(0, 1, (count, 1)) / wave**0.8
        radius += amplitude * np.cos(wave * angle + rng.uniform(0, 2 * np.pi, (count, 1)))
    radius = np.clip(radius, 0.4, 1.7) * radii[:, None]
    corners = np.stack([radius * np.cos(angle), radius * np.sin(angle) * rng.uniform(0.65, 1.0, (count, 1))], axis=2)
    turn = rng.uniform(0, np.pi, count)
    rotation = np.stack([np.stack([np.cos(turn), -np.sin(turn)], 1), np.stack([np.sin(turn), np.cos(turn)], 1)], 1)
    return np.asarray(centres[:, None, :] + np.einsum("nij,npj->npi", rotation, corners), np.float64)
