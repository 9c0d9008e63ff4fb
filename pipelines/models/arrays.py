"""Look into .h5 files before Keras does: which arrays they hold, and that they hold nothing but arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.errors import UsageError

Shape = tuple[int, ...]


def read_shapes(path: Path) -> dict[str, Shape]:
    """The shape of every array in an HDF5 file, by its path inside.

    Raises:
        UsageError: If it is no HDF5 file, or an array lies in another file, which opening it would read.
    """
    import h5py

    shapes: dict[str, Shape] = {}
    try:
        with h5py.File(path, "r") as file:
            _walk(file, "", shapes, path)
    except (OSError, RuntimeError, KeyError) as error:
        raise UsageError(
            f"{path} is not a readable HDF5 file of weights.", "Give a .weights.h5 or .h5 file."
        ) from error
    return shapes


def _walk(group: object, inside: str, shapes: dict[str, Shape], path: Path) -> None:
    import h5py

    assert isinstance(group, h5py.Group)
    for key in group:
        link = group.get(key, getlink=True)
        where = f"{inside}/{key}".lstrip("/")
        if not isinstance(link, h5py.HardLink):
            raise UsageError(f"{path} links to something else at {where}.", "Give a file that holds its arrays itself.")
        item = group[key]
        if isinstance(item, h5py.Group):
            _walk(item, where, shapes, path)
        elif isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                raise UsageError(
                    f"{path} keeps the array {where} in another file.", "Give a file that holds it itself."
                )
            shapes[where] = tuple(int(side) for side in item.shape or ())


def explain_misfit(path: Path, shapes: dict[str, Shape], wanted: Sequence[tuple[str, Shape]]) -> str:
    """One sentence on why a weights file does not fit an architecture.

    Args:
        path: The file.
        shapes: What it holds (`read_shapes`).
        wanted: Name and shape of each array of the architecture.
    """
    kernels = sorted(shape for shape in shapes.values() if len(shape) >= 2)
    ours = sorted(shape for _, shape in wanted if len(shape) >= 2)
    if len(shapes) != len(wanted):
        counts = f"it holds {len(shapes)} arrays, {len(wanted)} are wanted"
        more = [shape for shape in kernels if shape not in ours]
        if len(shapes) > len(wanted) and len(more) == 1:
            counts += f" (one more is of shape {more[0]}: weights with the top, where those without are wanted?)"
        return f"{path} does not fit: {counts}."
    missing = _only(ours, kernels)
    if not missing:
        return f"{path} does not fit: its arrays are of the right shapes but under other names."
    name, shape = next(entry for entry in wanted if entry[1] in missing)
    alike = [other for other in _only(kernels, ours) if other[:-1] == shape[:-1]]
    instead = f"where the file holds {alike[0]}" if alike else "which the file does not hold"
    return f"{path} does not fit: {name} is of shape {shape}, {instead}."


def _only(these: Sequence[Shape], those: Sequence[Shape]) -> list[Shape]:
    """Shapes that occur in `these` more often than in `those`, sorted."""
    rest = list(those)
    left = []
    for shape in these:
        if shape in rest:
            rest.remove(shape)
        else:
            left.append(shape)
    return left
