"""Who changed what: the line that a command leaves in `audit.jsonl` of the results or models that it changed."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.errors import NightreadError

if TYPE_CHECKING:
    from pipelines.models.bundle import Bundle

ReasonOption = Annotated[
    str | None, typer.Option("--reason", metavar="TEXT", help="Why; kept in audit.jsonl beside who and when.")
]


class Audit:
    """The audit of one act.

    Args:
        folder: The results or models folder that it changes.
        action: The command's name, as `promote`.
        reason: What the person said.

    Raises:
        UsageError: If there is an audit that may not be written to; nothing has been done then.
        TryLater: If storage does not answer.
    """

    def __init__(self, folder: str, action: str, reason: str | None) -> None:
        from pipelines.storage.audit import check_audit

        self._folder = folder
        self._action = action
        self._reason = reason
        check_audit(folder)

    def done(
        self,
        what: str,
        before: str | None = None,
        after: str | None = None,
        table_version: int | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the line, once the act is done.

        Args:
            what: What was changed: a model's name, a run, or a kind of files.
            before: What it was, or where it was.
            after: What it is now.
            table_version: Version of the table that holds the change; None where no table is concerned.
            details: Further JSON values of this kind of act.

        Raises:
            NightreadError: If that fails; says that the act is done all the same.
        """
        from pipelines.predictions.runs import who_and_where
        from pipelines.storage.audit import add_line

        who = who_and_where()
        entry = {
            "at": datetime.datetime.now(datetime.UTC).isoformat(),
            "action": self._action,
            "what": what,
            "from": before,
            "to": after,
            "table_version": table_version,
            "reason": self._reason,
            "user": who["user"],
            "host": who["host"],
            "nightread": who["versions"].get("nightread"),
            **(details or {}),
        }
        try:
            add_line(self._folder, entry)
        except NightreadError as error:
            said = f"The {self._action} of {what} is done, but its line in audit.jsonl could not be written"
            raise type(error)(f"{said}: {error.message}", error.cure) from error


def models_of(bundle: Bundle) -> str:
    """The models folder that a bundle lies in: MODELS of MODELS/NAME/VERSION."""
    from pipelines.storage import paths

    return paths.parent(paths.parent(bundle.uri))
