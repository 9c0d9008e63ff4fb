"""Which class is the positive one: the rule of the design, with its one short table."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.errors import UsageError

# Names that, as the whole name of a class, say that it is the one being looked for.
SAYS_SO = frozenset({"malignant", "cancer", "tumour", "tumor", "abnormal", "disease"})
# Names that say so only where the other class can be nothing but its opposite.
SAYS_SO_OF_TWO = frozenset({"positive", "yes", "true", "1"})


def choose_positive(classes: Sequence[str], requested: Sequence[str] | None = None) -> tuple[str, ...]:
    """The positive classes, in the order of `classes`.

    Args:
        classes: All classes, in the bundle's order.
        requested: What a person asked for; None or empty for the rule: the one class whose whole name says so; else,
            of two classes, the last in sorted order.

    Raises:
        UsageError: If a requested class is not there, if all classes would be positive, or if nothing was requested
            and the rule does not decide.
    """
    listing = ", ".join(classes)
    if requested:
        unknown = [name for name in requested if name not in classes]
        if unknown:
            raise UsageError(
                f"There is no class {unknown[0]!r} that could be positive.", f"The classes are: {listing}."
            )
        if set(requested) == set(classes):
            raise UsageError("All classes were asked to be positive.", f"Leave at least one out of: {listing}.")
        return tuple(name for name in classes if name in requested)
    telling = SAYS_SO | SAYS_SO_OF_TWO if len(classes) == 2 else SAYS_SO
    named = [name for name in classes if name.strip().casefold() in telling]
    if len(named) == 1:
        return (named[0],)
    if len(classes) == 2:
        return (max(classes),)
    raise UsageError(
        "No class says by its name that it is the positive one.",
        f"Say --positive CLASS (several: A,B); the classes are: {listing}.",
    )
