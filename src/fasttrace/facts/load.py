"""Reads facts from files and tables of every known format (`formats`), and says what it left out.

The error of an unusable record is one sentence that names the source, the record and the field.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from typing import Annotated, Any, Literal

from fasttrace.errors import FactError, did_you_mean, shown
from fasttrace.facts.columns import as_fields, check_map, mapped
from fasttrace.facts.fields import Bad, Fields, LeftOut, check_encoding, kind
from fasttrace.facts.formats import FORMATS, detect
from fasttrace.facts.formats.base import Format
from fasttrace.facts.record import Fact
from fasttrace.facts.sources import BUILTIN, Item, Source, source_of
from fasttrace.settings.arguments import checked_as
from fasttrace.settings.kinds import Bounds
from fasttrace.settings.study import FactFormat, FactOrder, FactSettings, ZsreForm

__all__ = ["BUILTIN", "Loaded", "load_facts", "read_facts"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """Facts, and what was left out of them. source: the name of their source, as messages have it. format: its name."""

    source: str
    format: str
    facts: list[Fact] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def summary(self) -> str | None:
        """What was left out, in a sentence, or None for nothing."""
        if not self.left_out:
            return None
        parts = sum(one.part for one in self.left_out)
        records = len({one.record for one in self.left_out if not one.part})
        counts = [f"{records} record{'s' if records > 1 else ''}"] if records else []
        counts += [f"{parts} part{'s' if parts > 1 else ''} of records"] if parts else []
        said = f"{' and '.join(counts)} of {self.source} left out"
        return f"{said}; the first one: {self.left_out[0].sentence(self.source)}"


@checked_as(FactError)
def load_facts(
    source: Any = None,
    *,
    format: FactFormat = "auto",
    relation: str | None = None,
    limit: Annotated[int | None, Bounds(1)] = None,
    order: FactOrder = "given",
    zsre: ZsreForm = "question",
    map: Mapping[str, str] | None = None,
    on_bad: Literal["raise", "skip"] = "raise",
    rejected: list[str] | None = None,
) -> list[Fact]:
    """Load facts from a file, a folder, a table or a data set of the hub, in their order.

    source: None or "builtin" for the built-in set; the path of a JSON list, JSONL, CSV, TSV or Parquet file, or of a
        folder of them; a DataFrame of pandas or polars, a pyarrow Table, a `datasets.Dataset` or a list of dicts; or
        "hub:owner/name", which the datasets library loads.
    format: "auto" decides by the fields of the records, never by the file's name. A named format must be that of the
        source. Each is described in its file of `fasttrace/facts/formats`, with its source.
    relation: keep only the facts with this `relation`.
    limit: at most this many facts, counted in `order` after the selection by relation. A case is kept whole or not at
        all, also by `relation`, which one of its facts must have.
    order: "given" is that of the source, whose records after the limit are not checked. "interleaved" takes one fact or
        case from each relation in rotation, so that the first few cover many relations. "shuffled" is the order of
        hashes of the facts' ids, the same in every file.
    zsre: how the prompts of a zsRE file read.
    map: {field of a fact: column} for tables and records of no known format. "a.b" is the field b in the object a.
        Without a column of their own in it, prompt, subject and target_true are the columns of these names. All other
        columns are kept in `Fact.meta`.
    on_bad: "raise" stops at the first bad record. "skip" leaves bad records out and appends their error sentences to
        `rejected`. Without that list, it logs a warning with their number and the first sentence.

    A warning is logged for parts of records that no fact has, for subjects that occur several times in a prompt, and
    for prompts that end in white space.

    Raises FactError for a source that is missing, empty or in no known format, for a bad record or argument, for a
    relation that no fact has, and where no record is usable.
    """
    asked = FactSettings(relation=relation, limit=limit, order=order, zsre=zsre, format=format, map=map, on_bad=on_bad)
    loaded = read_facts(source, asked)
    if rejected is not None:
        rejected.extend(one.sentence(loaded.source) for one in loaded.left_out if not one.part)
    if (said := loaded.summary()) is not None and (rejected is None or any(one.part for one in loaded.left_out)):
        log.warning("%s", said)
    return loaded.facts


def read_facts(source: Any, asked: FactSettings) -> Loaded:
    """`load_facts`, with what was left out. asked.file is not read."""
    read = source_of(source)
    _check_map(read, asked)
    format = _format(read, asked)
    loaded = Loaded(read.name, format.name)
    relations: set[str] = set()
    chosen = _of_relation(_cases(_usable(read, format, asked, loaded.left_out)), asked.relation, relations)
    for case in ORDERS[asked.order](chosen):
        if asked.limit is not None and len(loaded.facts) + len(case) > asked.limit:
            break
        loaded.facts.extend(case)
        if len(loaded.facts) == asked.limit:
            break
    if not loaded.facts:
        raise FactError(_why_none(loaded, asked, relations))
    _warn(loaded)
    return loaded


def _cases(facts: Iterable[Fact]) -> Iterator[list[Fact]]:
    """The facts of each case together, as soon as all are read, and each fact without a case by itself."""
    begun: dict[str, list[Fact]] = {}
    for fact in facts:
        if fact.case_id is None:
            yield [fact]
            continue
        case = begun.setdefault(fact.case_id, [])
        case.append(fact)
        if len(case) == fact.case_edits:
            yield begun.pop(fact.case_id)
    yield from begun.values()


def _of_relation(cases: Iterable[list[Fact]], relation: str | None, seen: set[str]) -> Iterator[list[Fact]]:
    """The cases with a fact of the relation, or all for None. Adds the relations of all to `seen`."""
    for case in cases:
        of_case = {fact.relation for fact in case}
        seen |= {one for one in of_case if one is not None}
        if relation is None or relation in of_case:
            yield case


def in_rotation(cases: Iterable[list[Fact]]) -> Iterator[list[Fact]]:
    """The cases in rotation, one from each relation. A case's relation is that of its first fact."""
    by_relation: dict[str | None, list[list[Fact]]] = {}
    for case in cases:
        by_relation.setdefault(case[0].relation, []).append(case)
    for turn in zip_longest(*by_relation.values()):
        yield from (case for case in turn if case is not None)


def shuffled(cases: Iterable[list[Fact]]) -> list[list[Fact]]:
    """The cases in the order of hashes of their first facts' ids."""
    return sorted(cases, key=lambda case: hashlib.sha256(case[0].fact_id.encode()).digest())


ORDERS: dict[FactOrder, Callable[[Iterable[list[Fact]]], Iterable[list[Fact]]]] = {
    "given": iter,
    "interleaved": in_rotation,
    "shuffled": shuffled,
}


def _usable(read: Source, format: Format, asked: FactSettings, left_out: list[LeftOut]) -> Iterator[Fact]:
    """The facts of a source. Raises FactError at a bad record, or adds it to `left_out` as asked."""
    first_use: dict[str, str] = {}
    for where, found in _records(read, format, asked):
        if isinstance(found, Fact):
            same = first_use.get(found.fact_id)
            if same is None:
                first_use[found.fact_id] = where
                yield found
                continue
            found = Bad("fact_id", f"expected a unique id, got {shown(found.fact_id)}, which {same} also has")
        one = found if isinstance(found, LeftOut) else LeftOut(where, found.field, found.what)
        if asked.on_bad == "raise" and not one.part:
            raise FactError(one.sentence(read.name))
        left_out.append(one)


def _records(read: Source, format: Format, asked: FactSettings) -> Iterator[tuple[str, Fact | Bad | LeftOut]]:
    """(where, a fact, why a record is none, or what of it no fact has) for every record of a source."""
    items = partial(_as_fields, read, format, asked.map)
    parse = format.parser(items(), asked.zsre)
    for item in items():
        value = item.value
        try:
            if isinstance(value, Bad):
                raise value
            if not isinstance(value, dict):
                raise Bad(None, f"expected a JSON object, got {kind(value)}")
            record = Fields(value, file=item.file, path=item.path)
            every = list(parse(record, item.number))
            if not read.clean:
                check_encoding(value)
        except Bad as bad:
            yield item.where, bad
        except FactError as error:
            yield item.where, Bad(None, str(error))
        else:
            yield from ((item.where, one) for one in every)
            yield from ((item.where, LeftOut(item.where, one.field, one.what, part=True)) for one in record.left_out)


def _as_fields(read: Source, format: Format, columns: Mapping[str, str] | None) -> Iterator[Item]:
    """The records of a source, under the names of a fact's fields where they are of its own format."""
    for item in read.items():
        value = item.value
        if format.name != "own" or not isinstance(value, dict) or not (columns or item.row):
            yield item
            continue
        try:
            yield item._replace(value=as_fields(mapped(value, columns) if columns else value))
        except Bad as bad:
            yield item._replace(value=bad)


def _check_map(read: Source, asked: FactSettings) -> None:
    if not asked.map:
        return
    if asked.format not in ("auto", "own"):
        raise FactError(f"map: expected format own, whose fields it names, got {asked.format}")
    check_map(read.name, asked.map, (item.value for item in read.items()))


def _format(read: Source, asked: FactSettings) -> Format:
    if asked.map:
        return FORMATS["own"]
    if asked.format != "auto":
        return FORMATS[asked.format]
    return detect(read.name, (item.value for item in read.items()), lines=read.lines)


def _why_none(loaded: Loaded, asked: FactSettings, relations: set[str]) -> str:
    """Why a source has no fact, for the error."""
    name = loaded.source
    bad = [one for one in loaded.left_out if not one.part]
    if asked.relation is not None and (relations or not bad):
        known = ", ".join(sorted(relations)) or "none"
        hint = did_you_mean(asked.relation, relations)
        return f"no usable fact of {name} has the relation {asked.relation!r}{hint}; its relations are: {known}"
    if bad:
        return f"{name}: expected a usable record, got none in {len(bad)}; the first one: {bad[0].sentence(name)}"
    if asked.limit is not None:
        return f"{name}: expected a limit of at least the edits of its first case, got {asked.limit}"
    return f"{name}: expected a fact, got none in its records"


def _warn(loaded: Loaded) -> None:
    """Log what a reader may want to look at: subjects in several places, and white space at the ends of prompts."""
    several = [fact for fact in loaded.facts if ", first of " in fact.subject_found]
    if several:
        log.warning(
            "%d of %d facts of %s have their subject several times in the prompt, such as %s in %s of %s: the first "
            "place is taken",
            *(len(several), len(loaded.facts), loaded.source),
            *(shown(several[0].subject), shown(several[0].text), several[0].fact_id),
        )
    facts = loaded.facts
    prompts = [text for fact in facts for text in (fact.text, *fact.paraphrases, *fact.neighborhood)]
    prompts += [probe.prompt for fact in facts for probe in fact.probes]
    if spaced := [text for text in prompts if text[-1].isspace()]:
        log.warning(
            "%d of %d prompts of %s end in white space, such as %s: their targets follow without another space",
            *(len(spaced), len(prompts), loaded.source, shown(spaced[0])),
        )
