"""Patients that only the paths of images name."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipelines.errors import UsageError


def find_groups(pattern: str, below: Sequence[str], people: Sequence[str | None], data: str) -> list[str | None]:
    """What a pattern finds in each path.

    Args:
        pattern: Regular expression; its first group is taken, where it has one.
        below: Path of each image below the data's folder.
        people: Patient of each, where the data name one: no pattern may set their images free of each other.
        data: What to call the data.

    Raises:
        UsageError: If it finds nothing in some path, or several groups for one patient.
    """
    compiled = re.compile(pattern)
    groups: list[str | None] = []
    for path in below:
        found = compiled.search(path)
        groups.append(None if found is None else found[1] if compiled.groups and found[1] else found[0])
    # Images without a group would be dealt one by one, a patient's into several parts: every path has to say it.
    lost = [path for path, group in zip(below, groups, strict=True) if not group]
    if lost:
        raise UsageError(
            f"--group-by {pattern!r} finds nothing in the paths of {len(lost)} of {len(below)} images, "
            f"{lost[0]!r} among them.",
            "Write a pattern that finds the patient in every path.",
        )
    _refuse_parted_patients(people, groups, pattern, data)
    return groups


def _refuse_parted_patients(
    people: Sequence[str | None], groups: Sequence[str | None], pattern: str, data: str
) -> None:
    """Refuse a pattern that would set images of one `patient_id` free of each other."""
    reached: dict[str, set[str | None]] = {}
    for person, group in zip(people, groups, strict=True):
        if person is not None:
            reached.setdefault(person, set()).add(group)
    parted = sum(len(found) > 1 for found in reached.values())
    if parted:
        raise UsageError(
            f"--group-by {pattern!r} finds several groups for {parted} of {len(reached)} patients that "
            f"{data} names in patient_id: their images could stand in several parts.",
            "Leave --group-by out, or write a pattern that finds the same for all images of a patient.",
        )
