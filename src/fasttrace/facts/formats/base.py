"""What a format of facts is: how its records are recognised, and how one becomes facts."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fasttrace.facts.fields import Parse
from fasttrace.facts.sources import Item
from fasttrace.settings.study import ZsreForm

Begin = Callable[[Iterable[Item], ZsreForm], Parse]
"""All records of a source, and the form of zsRE → the parser, for formats that need to see them first."""


@dataclass(frozen=True)
class Format:
    """A format of facts.

    name: of `load_facts(format=…)`. title: as a message names it.
    marks: sets of fields. A record that has all fields of one of them is of this format, if `fits` agrees.
    parse: from a record and its number to its facts. It raises Bad for a record that cannot be used.
    hint: fields that suggest the format where no record has the marks of any.
    begin: makes the parser, where that takes more than one record.
    """

    name: str
    title: str
    marks: tuple[frozenset[str], ...]
    parse: Parse
    hint: frozenset[str] | None = None
    fits: Callable[[Mapping[str, Any]], bool] = lambda record: True
    begin: Begin | None = None

    def marked(self, record: Mapping[str, Any]) -> bool:
        """Whether a record has the marks of this format."""
        return any(mark <= record.keys() for mark in self.marks) and self.fits(record)

    def parser(self, records: Iterable[Item], zsre: ZsreForm) -> Parse:
        return self.parse if self.begin is None else self.begin(records, zsre)


def marks(*sets: str) -> tuple[frozenset[str], ...]:
    """Sets of fields, each as its words: marks("prompt target_true", "src answers")."""
    return tuple(frozenset(words.split()) for words in sets)
