"""Find the bundle that scored an image: by its id, near the place that a run named."""

from __future__ import annotations

from pipelines.errors import ModelRefused, UsageError
from pipelines.models.bundle import BUNDLE_FILE, load_bundle, peek
from pipelines.models.record import is_version
from pipelines.storage import files as storage
from pipelines.storage.paths import canonical, join, name, parent


def prove_bundle(ref: str, model_id: str) -> bool:
    """Find the bundle of an id and compare its files with their hashes.

    Args:
        ref: What a run was given: a bundle's folder, MODELS/NAME or MODELS/NAME@VERSION. What it means today may be
            another version; every version of that name is looked at.
        model_id: The hash of the bundle's bundle.json.

    Returns:
        True if it is there and whole; False where there is nothing at all in the place, so that nobody can tell.

    Raises:
        ModelRefused: If there are models, but not this one, or one of its files is missing or altered.
        UsageError, TryLater: If the place may not be read, or its storage does not answer.
    """
    place = canonical(ref)
    model = join(parent(place), name(place).partition("@")[0])
    if storage.exists(join(place, BUNDLE_FILE)):
        model = parent(place)
    versions = [join(model, version) for version in storage.list_names(model) if is_version(version)]
    for folder in dict.fromkeys([place, *sorted(versions)]):
        if _id_of(folder) == model_id:
            load_bundle(folder)
            return True
    if not versions and not storage.list_names(parent(model)):
        return False
    raise ModelRefused(
        f"No model in {model} has the id {model_id[:12]}.", "Restore the models from the backup that belongs to it."
    )


def _id_of(folder: str) -> str | None:
    """The id of the bundle in a folder; None where there is none that can be read."""
    if not storage.exists(join(folder, BUNDLE_FILE)):
        return None
    try:
        return peek(folder).model_id
    except (ModelRefused, UsageError):
        return None
