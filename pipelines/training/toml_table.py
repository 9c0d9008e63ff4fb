"""Reading a TOML table strictly: every value of its type, nothing missing, nothing left over."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from pipelines.errors import UsageError

T = TypeVar("T")

TYPES: dict[str, type] = {"int": int, "float": float, "str": str}


class TomlTable:
    """A table that is emptied key by key, so that what is left over can be refused.

    Args:
        table: What the TOML file holds there.
        where: What to call it in an error.

    Raises:
        UsageError: If it is no table. Every method raises it too, naming the key and its rule.
    """

    def __init__(self, table: object, where: str) -> None:
        if not isinstance(table, dict):
            raise UsageError(f"{where} is no table of keys and values.", "Correct the recipe's file.")
        self._left: dict[str, Any] = dict(table)
        self.where = where

    def wrong(self, key: str, rule: str) -> UsageError:
        """The error for a key that breaks its rule."""
        return UsageError(f"{where_key(self.where, key)} must be {rule}.", "Correct the recipe's file.")

    def optional(self, key: str, kind: type) -> Any:
        """Take a value of this type; None where there is none. A float may be written as a whole number."""
        value = self._left.pop(key, None)
        if kind is float and type(value) is int:
            return float(value)
        if value is not None and type(value) is not kind:
            raise self.wrong(key, f"of type {kind.__name__}")
        return value

    def take(self, key: str, kind: type) -> Any:
        """Take a value that must be there."""
        value = self.optional(key, kind)
        if value is None:
            raise self.wrong(key, f"there, of type {kind.__name__}")
        return value

    def name(self, key: str, names: Collection[str]) -> str:
        """Take one of some names."""
        value = str(self.take(key, str))
        if value not in names:
            raise self.wrong(key, "one of " + ", ".join(names))
        return value

    def many(self, key: str, kind: type) -> tuple[Any, ...]:
        """Take a list of values of one type."""
        return tuple(TomlTable({key: value}, self.where).take(key, kind) for value in self.take(key, list))

    def inner_as(self, key: str, read: Callable[[TomlTable], T]) -> T | None:
        """Take a table and read all of it; None where there is none."""
        table = self.optional(key, dict)
        if table is None:
            return None
        inner = TomlTable(table, where_key(self.where, key))
        found = read(inner)
        inner.done()
        return found

    def inners(self, key: str) -> Iterator[TomlTable]:
        """Take a list of tables, which may be missing; each must be emptied before the next is taken."""
        for number, table in enumerate(self.optional(key, list) or [], 1):
            inner = TomlTable(table, f"{where_key(self.where, key)}[{number}]")
            yield inner
            inner.done()

    def rest(self) -> dict[str, float]:
        """Take everything that is left as numbers."""
        return {key: self.take(key, float) for key in list(self._left)}

    def fill(self, kind: type[T]) -> T:
        """Take the fields of a dataclass of numbers and text; those with a default may be missing."""
        values: dict[str, Any] = {}
        for field in fields(kind):  # type: ignore[arg-type]  # any dataclass
            value = self.optional(field.name, TYPES[str(field.type).removesuffix(" | None")])
            if value is not None:
                values[field.name] = value
            elif field.default is MISSING:
                raise self.wrong(field.name, "there")
        return kind(**values)

    def done(self) -> None:
        """Refuse what nobody asked for."""
        if self._left:
            raise UsageError(f"{where_key(self.where, min(self._left))} is no key that is known.", "Leave it out.")


def where_key(where: str, key: str) -> str:
    """A key's full name."""
    return f"{where}.{key}"
