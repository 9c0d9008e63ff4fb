"""Find models: a bundle's folder, MODELS/NAME (its champion) or MODELS/NAME@VERSION."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.errors import ModelRefused, UsageError
from pipelines.models.bundle import BUNDLE_FILE, Bundle, load_bundle, peek
from pipelines.models.champion import Champion, make_champion, read_champion
from pipelines.models.record import check_name, is_version
from pipelines.storage import files as storage
from pipelines.storage.paths import canonical, join, name, parent


@dataclass(frozen=True)
class Entry:
    """One version in a listing.

    Attributes:
        name: The model's name.
        version: v1, v2 …
        champion: Whether it is the name's champion.
        bundle: What its bundle.json says; its other files are not verified. None where that cannot be read.
        problem: Why not; None where it can.
    """

    name: str
    version: str
    champion: bool
    bundle: Bundle | None
    problem: str | None


def resolve(ref: str, cache_dir: str | None = None) -> Bundle:
    """The verified bundle that a REF means.

    Args:
        ref: A bundle's folder, MODELS/NAME or MODELS/NAME@VERSION, local or in a bucket.
        cache_dir: See `load_bundle`.

    Raises:
        ModelRefused: If there is no such model (the message lists what there is), or it does not verify.
        UsageError: If a newer release wrote it.
    """
    return load_bundle(locate(ref), cache_dir)


def locate(ref: str) -> str:
    """The folder of the bundle that a REF means, as in `resolve`."""
    place = canonical(ref)
    if storage.exists(join(place, BUNDLE_FILE)):
        return place
    models, model, version = _parts(place)
    if version is None:
        crowned = read_champion(models, model) if _is_name(model) else None
        if crowned is None:
            raise _not_there(models, model)
        version = crowned.version
    folder = join(models, model, version)
    if not is_version(version) or not storage.exists(join(folder, BUNDLE_FILE)):
        raise _not_there(models, model, version)
    return folder


def follows_champion(ref: str) -> bool:
    """Whether a REF means whatever is champion, and so another bundle after each promotion."""
    place = canonical(ref)
    return not storage.exists(join(place, BUNDLE_FILE)) and _parts(place)[2] is None


def champion(models: str, model: str) -> Champion | None:
    """The champion of a name with its history; None where there is none."""
    return read_champion(canonical(models), model)


def promote(ref: str) -> Champion:
    """Verify a version and make it its name's champion.

    Args:
        ref: MODELS/NAME@VERSION, or the version's folder.

    Raises:
        UsageError: If the REF names no version, or a folder that is not MODELS/NAME/VERSION.
        ModelRefused: If there is no such version or it does not verify.
    """
    place = canonical(ref)
    if not storage.exists(join(place, BUNDLE_FILE)) and _parts(place)[2] is None:
        raise UsageError(
            f"{ref} names no version to promote.", "Say MODELS/NAME@VERSION, for example models/tissue@v2."
        )
    bundle = resolve(ref)
    folder = canonical(bundle.uri)
    if (name(parent(folder)), name(folder)) != (bundle.name, bundle.version):
        raise UsageError(
            f"{ref} does not lie where MODELS/NAME/VERSION is, but is {bundle.name} {bundle.version}.",
            "Promote it where it was made.",
        )
    return make_champion(parent(parent(folder)), bundle.name, bundle.version)


def newest_version(models: str, model: str) -> int:
    """Number of the newest finished version of a name; 0 where there is none."""
    versions = _versions(canonical(models), model)
    return int(versions[-1][1:]) if versions else 0


def standing(bundle: Bundle) -> Champion | None:
    """The champion of the bundle's name; None where there is none, or the bundle does not lie in a MODELS folder."""
    if (name(parent(bundle.uri)), name(bundle.uri)) != (bundle.name, bundle.version):
        return None
    return read_champion(parent(parent(bundle.uri)), bundle.name)


def list_models(models: str) -> list[Entry]:
    """Every finished version in a MODELS folder, by name and number. A damaged one is listed with its problem."""
    place = canonical(models)
    entries: list[Entry] = []
    for model in sorted(storage.list_names(place)):
        if not _is_name(model):
            continue
        versions = _versions(place, model)
        crowned = _champion_version(place, model) if versions else None
        entries.extend(_entry(place, model, version, version == crowned) for version in versions)
    return entries


def _entry(models: str, model: str, version: str, crowned: bool) -> Entry:
    try:
        return Entry(model, version, crowned, peek(join(models, model, version)), None)
    except (ModelRefused, UsageError) as error:
        return Entry(model, version, crowned, None, error.message)


def _champion_version(models: str, model: str) -> str | None:
    try:
        crowned = read_champion(models, model)
    except (ModelRefused, UsageError):
        return None  # the listing goes on; `resolve` will say what is wrong
    return crowned.version if crowned is not None else None


def _versions(models: str, model: str) -> list[str]:
    """Finished versions of a name, by number."""
    names = [entry for entry in storage.list_names(join(models, model)) if is_version(entry)]
    names.sort(key=lambda entry: int(entry[1:]))
    return [entry for entry in names if storage.exists(join(models, model, entry, BUNDLE_FILE))]


def _parts(place: str) -> tuple[str, str, str | None]:
    """MODELS, NAME and VERSION (None where there is none) of a canonical REF."""
    last, at, version = name(place).partition("@")
    if at and not version:
        raise UsageError(
            f"{place} names no version behind the @.", "Say MODELS/NAME@v1, or MODELS/NAME for its champion."
        )
    return parent(place), last, version or None


def _is_name(text: str) -> bool:
    try:
        check_name(text)
    except UsageError:
        return False
    return True


def _not_there(models: str, model: str, version: str | None = None) -> ModelRefused:
    """The error for a REF that means nothing: with what there is instead."""
    wanted = f"{model}@{version}" if version else model
    versions = _versions(models, model) if _is_name(model) else []
    if versions:
        what = "no champion" if version is None else f"no version {version}"
        return ModelRefused(f"The model {join(models, model)} has {what}.", f"Its versions are: {', '.join(versions)}.")
    if name(model).endswith((".keras", ".h5", ".tflite")):
        return ModelRefused(
            f"{join(models, model)} is no model bundle.", "Make one of it first: nightread models import FILE …"
        )
    inside = _names_in(join(models, model))
    if inside:
        return ModelRefused(
            f"{join(models, model)} is a folder of models, and no model.",
            f"Name one of them: {', '.join(inside[:20])}.",
        )
    others = _names_in(models)
    there = f"The models in {models} are: {', '.join(others[:20])}." if others else f"There are no models in {models}."
    return ModelRefused(f"There is no model {wanted} in {models}.", there)


def _names_in(models: str) -> list[str]:
    """Names of the models in a MODELS folder."""
    return [entry for entry in sorted(storage.list_names(models)) if _is_name(entry) and _versions(models, entry)]
