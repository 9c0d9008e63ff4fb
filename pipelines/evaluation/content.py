"""What a report shows beside figures: what training knows, and pictures. Plain values; nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Layer:
    """One row of the table of layers.

    Attributes:
        name: Of the layer.
        kind: Its type, such as `Conv2D`.
        shape: Of its output without the batch, such as `7 × 7 × 1280`.
        trainable: Whether training could change it.
        parameters: How many numbers it holds.
    """

    name: str
    kind: str
    shape: str
    trainable: bool
    parameters: int


@dataclass(frozen=True)
class Stage:
    """One box of the architecture's diagram: a run of layers of one kind of work.

    Attributes:
        title: Such as `MobileNetV2, layers 1-124`.
        detail: Output shape and parameters in words.
        trainable: Whether training could change any of it.
    """

    title: str
    detail: str
    trainable: bool


@dataclass(frozen=True)
class Sample:
    """One training image as the model sees it, and copies of it as training moves them.

    Attributes:
        label: Class name.
        picture: JPEG bytes.
        moved: JPEG bytes of moved copies; () where the recipe moves nothing.
    """

    label: str
    picture: bytes
    moved: tuple[bytes, ...]


@dataclass(frozen=True)
class PublishedWork:
    """A paper's figures beside ours.

    Attributes:
        source: The paper in a few words.
        figures: Our metric names to what it reports.
        compared: Header and rows of the paper's own table of earlier works; () where it has none.
        remarks: What differs from the paper, a sentence each.
    """

    source: str
    figures: Mapping[str, float]
    compared: tuple[tuple[str, ...], ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingSection:
    """What is known of how a model was trained; None or empty where it is not known, and then it is left out.

    Attributes:
        recipe: Its name.
        settings: Recipe key to value.
        history: Rows of history.csv: `epoch`, `loss`, `accuracy`, `precision`, `recall`, `val_loss` and so on.
        best_epoch: The one whose weights were kept.
        layers: The backbone's in short or whole, then the head's.
        stages: The architecture's diagram, in order.
        counts: Part to class to number of images.
        class_descriptions: Class name to what the paper says of it; may be empty.
        samples: Some training images of each class.
        samples_absent: Why there are none; "" where there are.
        published: None for a recipe of nobody's.
    """

    recipe: str
    settings: Mapping[str, Any]
    history: tuple[Mapping[str, float], ...]
    best_epoch: int | None
    layers: tuple[Layer, ...]
    stages: tuple[Stage, ...]
    counts: Mapping[str, Mapping[str, int]]
    class_descriptions: Mapping[str, str] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    samples_absent: str = ""
    published: PublishedWork | None = None


@dataclass(frozen=True)
class Shown:
    """One image of a gallery.

    Attributes:
        name: Its path below the data's root, or a short content hash where it has none.
        true: Class name of its label.
        predicted: Most probable class.
        probability: Of that class, 0-1.
        p_positive: Probability of the positive classes, 0-1.
        picture: JPEG bytes.
        overlay: JPEG bytes of the same picture with its Grad-CAM; None where there is none.
    """

    name: str
    true: str
    predicted: str
    probability: float
    p_positive: float
    picture: bytes
    overlay: bytes | None


@dataclass(frozen=True)
class Gallery:
    """Images to look at.

    Attributes:
        wrong: Misclassified ones, the most confident first.
        wrong_in_all: How many there are.
        right: Correct ones, the most confident first.
        overlay_absent: Why no Grad-CAM is shown; "" where it is.
    """

    wrong: tuple[Shown, ...]
    wrong_in_all: int
    right: tuple[Shown, ...]
    overlay_absent: str = ""


@dataclass(frozen=True)
class Evaluated:
    """What is said at the head and at the end of a report.

    Attributes:
        title: Such as `moles@v3 on the test part of isic`.
        model: Name and version, or the name alone for committed predictions.
        paragraph: What was evaluated, in one paragraph: model, data, images, patients, part or external.
        concerns: What to be careful about, a sentence each, the gravest first.
        provenance: Name and value: versions, seeds, hashes, the command that makes it again.
    """

    title: str
    model: str
    paragraph: str
    concerns: tuple[str, ...]
    provenance: tuple[tuple[str, str], ...]
