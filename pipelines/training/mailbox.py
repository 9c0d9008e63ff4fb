"""What the workers of a fit tell its driver.

Its own process imports this file and nothing else of ours, so that it is there at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.training.history import Row


class Mailbox:
    """What workers say to the driver; Ray runs it as an actor."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._workers: list[Any] = []
        self._addresses: dict[int, str] = {}
        self._room: Any = None

    def enter(self, worker: Any, rank: int, address: str, room: Any) -> None:
        """A worker says that it begins: its actor, where the others reach its TensorFlow, and the cores of all."""
        self._workers.append(worker)
        self._addresses[rank] = address
        self._room = room

    def workers(self) -> list[Any]:
        """All that began."""
        return self._workers

    def addresses(self) -> list[str]:
        """Where those are that began, by rank."""
        return [self._addresses[rank] for rank in sorted(self._addresses)]

    def room(self) -> Any:
        """The placement group in which they are; None before the first began."""
        return self._room

    def tell(self, row: Row) -> None:
        """Put a row of the history in."""
        self._rows.append(row)

    def take(self) -> list[Row]:
        """Take all out that is in."""
        rows, self._rows = self._rows, []
        return rows
