"""What an evaluation report shows of a model's training, gathered from its bundle and its recipe's paper."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from pipelines.errors import ModelRefused, UsageError
from pipelines.evaluation.content import PublishedWork, Sample, TrainingSection
from pipelines.models.bundle import HISTORY_FILE, Bundle
from pipelines.models.rebuild import rebuild_untrained, why_not_rebuilt
from pipelines.training.labelled import DataConfig
from pipelines.training.layer_table import layer_table, stages, totals
from pipelines.training.published import FIGURE_NAMES, Figures, Published, paper_behind
from pipelines.training.recipe_document import TITLES, value_text
from pipelines.training.recipe_rules import from_toml
from pipelines.training.recipes import Recipe, load_recipe
from pipelines.training.sample_pictures import training_samples

MOST_CHANGES_NAMED = 8


def training_section(bundle: Bundle, data: DataConfig | None, samples: bool) -> tuple[TrainingSection | None, str]:
    """Gather what is known of a training.

    Nothing of it names an image or a patient; samples are pictures of them.

    Args:
        bundle: The model.
        data: Labelled images among which training images may be found; None where there are none.
        samples: Whether pictures are wanted.

    Returns:
        The section, or None and one sentence that says why there is none.

    Raises:
        ModelRefused: If a file of the bundle is missing, altered or cannot be read.
    """
    said = bundle.provenance.get("recipe")
    if reason := why_not_rebuilt(bundle):
        return None, reason
    if not isinstance(said, Mapping):
        return None, f"The model {bundle.name}@{bundle.version} does not say how it was trained."
    settings = {key: value for key, value in said.items() if key != "name"}
    name, network = str(said.get("name", "")), rebuild_untrained(bundle)
    trained = int(bundle.backbone.get("trainable_layers", 0))
    paper = paper_behind(name)
    pictures, absent = _samples(bundle, name, settings, data, samples)
    section = TrainingSection(
        recipe=name,
        settings=settings,
        history=_history(bundle),
        best_epoch=bundle.provenance.get("best_epoch"),
        layers=layer_table(network, trained),
        stages=stages(network, trained, bundle.classes, bundle.temperature),
        counts=bundle.provenance.get("images", {}),
        class_descriptions={} if paper is None else _descriptions(paper, bundle.classes),
        samples=pictures,
        samples_absent=absent,
        published=None if paper is None else published_work(paper, name, settings, network.spec.name, totals(network)),
    )
    return section, ""


def _history(bundle: Bundle) -> tuple[dict[str, float], ...]:
    """The rows of history.csv; () where the bundle has none."""
    if HISTORY_FILE not in bundle.files:
        return ()
    try:
        rows = csv.DictReader(io.StringIO(bundle.read(HISTORY_FILE).decode()), strict=True)
        return tuple({key: float(value) for key, value in row.items()} for row in rows)
    except (ValueError, TypeError, csv.Error) as error:
        raise ModelRefused(
            f"{HISTORY_FILE} of the model {bundle.name}@{bundle.version} cannot be read.",
            "Copy the bundle again from where it was made, or train it again.",
        ) from error


def _samples(
    bundle: Bundle, name: str, settings: Mapping[str, Any], data: DataConfig | None, wanted: bool
) -> tuple[tuple[Sample, ...], str]:
    if not wanted:
        return (), "Pictures were left out."
    try:
        recipe = _recipe(name, settings)
    except UsageError:
        return (), "The model was trained with settings that this release does not know."
    return training_samples(bundle, recipe, data)


def _recipe(name: str, settings: Mapping[str, Any]) -> Recipe:
    """The recipe that a bundle tells of; keys that came later have the values of `default`.

    Raises:
        UsageError: If it has keys or values that this release does not know.
    """
    known = {key: from_toml(key, value) for key, value in settings.items()}
    values: dict[str, Any] = {**load_recipe("default").values(), **known}
    return Recipe(name=name, **values)


def _descriptions(paper: Published, classes: tuple[str, ...]) -> dict[str, str]:
    """What is said of the model's classes; a paper's other classes are not described."""
    texts = {}
    for own in classes:
        for known in paper.classes:
            if known.name.casefold() == own.casefold():
                source = "" if known.written_by == "paper" else " (General knowledge, not the paper's words.)"
                texts[own] = known.description + source
    return texts


def published_work(
    paper: Published, name: str, settings: Mapping[str, Any], backbone: str, counted: str
) -> PublishedWork:
    """The paper's figures of a backbone, the comparison that it makes, and what to know before reading them.

    Args:
        paper: What it reports.
        name: The recipe's.
        settings: Keys and values that the model was trained with.
        backbone: The model's.
        counted: Its layers and parameters, in words.
    """
    own = [one for one in paper.figures if one.backbone == backbone]
    # On images that did not choose the weights, where the paper has such a figure.
    shown = next((one for one in own if one.part == "test"), own[0] if own else None)
    remarks = [_data_text(paper)]
    if shown is None:
        remarks.append(f"The paper reports no figures of {backbone}.")
    else:
        remarks.append(f"Its figures are of {backbone} on {_part_text(shown)}. {shown.note}".rstrip())
    remarks += [
        f"On {_part_text(one)} it reports {_figures_text(one)}. {one.note}".rstrip() for one in own if one is not shown
    ]
    if paper.architecture is not None:
        theirs = paper.architecture
        remarks.append(
            f"The paper counts {theirs.layers} layers and {theirs.parameters:,} parameters; this network has "
            f"{counted}. {theirs.note}".rstrip()
        )
    remarks += [text for text in (_changes(name, settings), paper.comparison.note if paper.comparison else "") if text]
    compared = (paper.comparison.columns, *paper.comparison.rows) if paper.comparison else ()
    figures = {FIGURE_NAMES[key]: value for key, value in shown.values.items()} if shown else {}
    return PublishedWork(paper.source, figures, compared, tuple(remarks))


def _data_text(paper: Published) -> str:
    images = "" if paper.data.images is None else f" ({paper.data.images:,} images)"
    return f"The paper's images: {paper.data.name}{images}. {paper.data.note}".rstrip()


def _part_text(figures: Figures) -> str:
    part = f"its {figures.part} part" if figures.part in ("test", "validation") else figures.part
    return f"{part} ({figures.images:,} images)"


def _figures_text(figures: Figures) -> str:
    return ", ".join(f"{TITLES[key]} {value:g}" for key, value in figures.values.items())


def _changes(name: str, settings: Mapping[str, Any]) -> str:
    """Where this training's settings are not those of the recipe as it is published; "" where they are."""
    recipe = load_recipe(name).values()
    same = {key: list(value) if isinstance(value, tuple) else value for key, value in recipe.items()}
    changed = [key for key, value in settings.items() if key not in same or same[key] != value]
    if not changed:
        return ""
    named = [
        f"{key} {value_text(settings[key])}" + (f" (there {value_text(recipe[key])})" if key in recipe else "")
        for key in changed[:MOST_CHANGES_NAMED]
    ]
    more = f" and {len(changed) - len(named)} more" if len(changed) > len(named) else ""
    return f"This model was trained with other settings than the recipe {name}: {', '.join(named)}{more}."
