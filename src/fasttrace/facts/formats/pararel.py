"""ParaRel (Elazar et al. 2021, arXiv 2102.01017, github.com/yanaiela/pararel, MIT).

A relation has a file of patterns (pattern_data/graphs_json/P17.jsonl, with the field pattern) and a file of tuples
(trex_lms_vocab/P17.jsonl, with sub_label and obj_label). Both have the relation's name, so the source is a folder that
contains them. Each tuple is a fact: its prompt is the first pattern of the relation that has its object [Y] at the end,
and the others of this sort are paraphrases. Other patterns are left out. A line may also have a pattern and a tuple:
then the lines of one tuple are one fact with all their patterns.

The relation is the file's name, or a field relation or predicate_id. The id is "pararel/<relation>/<uuid>", with the
line's number where there is no uuid. What else the pattern's line has is in the fact's `meta`, under "pattern".

A relation that lacks its patterns or its tuples is left out where there are complete ones, and an error where not.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fasttrace.facts.fields import PLACE, Bad, Fields, Parse
from fasttrace.facts.formats.base import Format, marks
from fasttrace.facts.formats.parts import object_last
from fasttrace.facts.record import Fact
from fasttrace.facts.sources import Item
from fasttrace.settings.study import ZsreForm

Key = tuple[str, ...]  # (relation,), or (relation, subject, object) of lines that have both


class _Patterns:
    """The patterns and tuples of all relations of a source."""

    def __init__(self, items: Iterable[Item]) -> None:
        self.patterns: dict[Key, dict[str, dict[str, Any]]] = {}  # pattern → the other fields of its line
        self.tuples: Counter[Key] = Counter()
        self.said: set[object] = set()
        for item in items:
            if isinstance(item.value, Mapping):
                self._add(Fields(item.value, file=item.file))
        self.complete = {key for key, every in self.patterns.items() if self.tuples[key] and any(map(_prompt, every))}

    def _add(self, line: Fields) -> None:
        key = _key(line)
        if isinstance(pattern := line.value.get("pattern"), str):
            rest = {} if len(key) > 1 else {name: value for name, value in line.value.items() if name != "pattern"}
            self.patterns.setdefault(key, {}).setdefault(pattern, rest)
        if all(isinstance(line.value.get(name), str) for name in ("sub_label", "obj_label")):
            self.tuples[key] += 1

    def once(self, what: object) -> bool:
        """Whether it has not been asked for this before."""
        new = what not in self.said
        self.said.add(what)
        return new

    def parse(self, line: Fields, number: int) -> Iterator[Fact]:
        key, relation = _key(line), _relation(line)
        merged = len(key) > 1
        if "pattern" in line.value:
            pattern = line.string("pattern")
            if self.once((relation, pattern)) and (bad := _flaw(pattern, line.name("pattern"))):
                line.leave_out(bad)
            if not merged:
                self._say_lacking(line, key, "tuples", "sub_label and obj_label", self.tuples[key] > 0)
                return
        subject, target = line.string("sub_label").strip(), line.string("obj_label").strip()
        uuid = line.optional("uuid")
        prompts = [prompt for pattern in self.patterns.get(key, ()) if (prompt := _prompt(pattern))]
        if not prompts:
            if merged:
                raise line.bad("pattern", f"expected a pattern with its object [Y] at the end, got none {_of(key)}")
            self._say_lacking(line, key, "patterns", "a pattern with its object [Y] at the end", False)
            return
        if merged and not self.once(key):
            return
        used = next(rest for pattern, rest in self.patterns[key].items() if _prompt(pattern))
        for name in ("relation", "predicate_id"):
            line.get(name)
        yield Fact(
            prompts[0],
            subject,
            target,
            relation=relation or None,
            paraphrases=tuple(dict.fromkeys(prompt.replace(PLACE, subject) for prompt in prompts[1:])),
            fact_id="/".join(part for part in ("pararel", relation, uuid or str(number)) if part),
            source="pararel",
            meta=line.rest() | ({"pattern": used} if used else {}),
        )

    def _say_lacking(self, line: Fields, key: Key, what: str, fields: str, there: bool) -> None:
        """Where a relation lacks its patterns or tuples, say it once, or raise Bad where every relation lacks some."""
        if there or (self.complete and not self.once((key, what))):
            return
        bad = Bad(None, f"expected {what} {_of(key)}, which are lines with {fields}, got none")
        if not self.complete:
            raise bad
        line.leave_out(bad)


def parse(record: Fields, number: int) -> Iterator[Fact]:
    """A record by itself, which has a pattern and a tuple."""
    yield from _Patterns([Item("", number, record.value, record.file)]).parse(record, number)


def _begin(items: Iterable[Item], zsre: ZsreForm) -> Parse:
    return _Patterns(items).parse


def _relation(line: Fields) -> str:
    """The relation of a line, "" where nothing names it."""
    named = (line.value.get(name) for name in ("relation", "predicate_id"))
    return next((name for name in named if isinstance(name, str) and name.strip()), line.file)


def _key(line: Fields) -> Key:
    value = line.value
    if "pattern" in value and ("sub_label" in value or "obj_label" in value):
        return _relation(line), str(value.get("sub_label")), str(value.get("obj_label"))
    return (_relation(line),)


def _of(key: Key) -> str:
    return f"of the relation {key[0]}" if key[0] else "of the relation"


def _prompt(pattern: str) -> str | None:
    try:
        return object_last(pattern, "pattern")
    except Bad:
        return None


def _flaw(pattern: str, field: str) -> Bad | None:
    try:
        object_last(pattern, field)
    except Bad as bad:
        return bad
    return None


def _fits(record: Mapping[str, Any]) -> bool:
    """Whether it is not one of LAMA, whose tuples have these fields, too."""
    of_lama = {"predicate_id", "pred", "template", "masked_sentence", "masked_sentences", "evidences"}
    return "pattern" in record or not of_lama & record.keys()


FORMAT = Format(
    "pararel",
    "ParaRel",
    marks("pattern lemma", "pattern extended_lemma", "pattern sub_label obj_label", "sub_label obj_label uuid"),
    parse,
    fits=_fits,
    begin=_begin,
)
