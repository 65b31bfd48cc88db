"""LAMA (Petroni et al. 2019, arXiv 1909.01066, github.com/facebookresearch/LAMA, CC BY-NC 4.0): T-REx, Google-RE,
ConceptNet and SQuAD, as lines of its files or rows of the hub.

sub_label (sub in ConceptNet) is the subject, obj_label o_true. The prompt is the text of the template before its object
[Y]. The template is the record's own, or that of its predicate_id in relations.jsonl, which a folder may have besides
the files of tuples. Where there is none, or its object is not at the end, the prompt is the first masked sentence (of
masked_sentences, masked_sentence or evidences) that has the subject, and [MASK] at its end. A record without either is
refused. So are the questions of SQuAD, which have no subject.

The relation is predicate_id or pred. The id is "lama/<uuid>", or has the record's place where there is no uuid. The hub
repeats a tuple for each of its sentences: the rows after the first are left out.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fasttrace.errors import shown
from fasttrace.facts.fields import PLACE, Bad, Fields, Parse
from fasttrace.facts.formats.base import Format, marks
from fasttrace.facts.formats.parts import OBJECT, before_object, numbered, object_last
from fasttrace.facts.record import Fact
from fasttrace.facts.sources import Item
from fasttrace.facts.subject import TEMPLATE, Placed, place_subject
from fasttrace.settings.study import ZsreForm

MASK = "[MASK]"
SENTENCES = ("masked_sentences", "masked_sentence", "evidences")


class _Templates:
    """The lines of relations.jsonl by relation, and the tuples that have been read."""

    def __init__(self, items: Iterable[Item]) -> None:
        self.relations: dict[str, dict[str, Any]] = {}
        self.read: set[tuple[str, ...]] = set()
        self.said: set[str] = set()
        self.tuples = False
        for item in items:
            value = item.value
            if isinstance(value, dict) and _is_relation(value):
                if isinstance(name := value.get("relation"), str):
                    self.relations.setdefault(name, value)
            elif isinstance(value, dict):
                self.tuples = self.tuples or "obj_label" in value

    def parse(self, record: Fields, number: int) -> Iterator[Fact]:
        if _is_relation(record.value):
            self._check(record)
            return
        subject = record.string("sub_label" if "sub_label" in record else "sub" if "sub" in record else "sub_label")
        target = record.string("obj_label").strip()
        relation = record.optional("predicate_id") or record.optional("pred")
        placed = self._placed(record, subject.strip(), relation)
        uuid = record.optional("uuid")
        if uuid is not None:
            read = (uuid, relation or "", subject, target)
            if read in self.read:
                record.leave_out(record.bad("uuid", f"a record before has the same fact, {shown(uuid)}"))
                return
            self.read.add(read)
        about = {key: value for key, value in self.relations.get(relation or "", {}).items() if key != "relation"}
        yield Fact(
            placed.template,
            placed.subject,
            target,
            relation=relation,
            fact_id=numbered("lama", record, number) if uuid is None else f"lama/{uuid}",
            source="lama",
            subject_found=placed.how,
            meta=record.rest() | ({"relation": about} if about else {}),
        )

    def _check(self, line: Fields) -> None:
        """A line of relations.jsonl, whose template the tuples have."""
        line.string("relation")
        template = line.string("template")
        if not self.tuples:
            raise Bad(None, "expected tuples besides the templates, which are lines with obj_label, got none")
        try:
            object_last(template, line.name("template"))
        except Bad as bad:
            self._say(line, template, bad)

    def _say(self, record: Fields, template: str, flaw: Bad) -> None:
        """That a template is not used, once."""
        if template not in self.said:
            self.said.add(template)
            record.leave_out(flaw)

    def _placed(self, record: Fields, subject: str, relation: str | None) -> Placed:
        """The template of a record's prompt. Raises Bad where it has none."""
        template, field = record.text("template"), record.name("template")
        if not (template or "").strip():
            template, field = self.relations.get(relation or "", {}).get("template"), "template"
        flaw = None
        if isinstance(template, str) and template.strip():
            try:
                return Placed(object_last(template, field), subject, TEMPLATE)
            except Bad as bad:
                flaw = bad
        placed = _in_sentences(record, subject, flaw)
        if flaw is not None:
            self._say(record, str(template), flaw)
        return placed


def _in_sentences(record: Fields, subject: str, flaw: Bad | None) -> Placed:
    """The prompt and subject of the first masked sentence that can be used. flaw: that of the record's template."""
    field = None
    for key in SENTENCES:
        for name, sentence, surface in _sentences(record, key):
            field = field or name
            before = before_object(sentence, MASK)
            if before is None or PLACE in before:
                continue
            for one in dict.fromkeys((surface, subject)):
                try:
                    return place_subject(before, one, name)
                except Bad:
                    continue
    if field is not None:
        what = f"expected a sentence with the subject {shown(subject)} before {MASK}, and {MASK} at its end, got none"
        raise Bad(field, what)
    raise flaw or record.bad("template", f"expected a template with {OBJECT} at its end, or masked sentences, got none")


def _sentences(record: Fields, key: str) -> Iterator[tuple[str, str, str]]:
    """(field, sentence, the subject as it is there) of a key: a text, or a list of texts or evidences."""
    subject = next((one for name in ("sub_label", "sub") if isinstance(one := record.value.get(name), str)), "")
    value = record.value.get(key)
    if key != "evidences":
        for i, text in enumerate(record.one_or_more(key)):
            yield f"{record.name(key)}[{i}]" if isinstance(value, list) else record.name(key), text, subject
        return
    for one in record.each(key) if value is not None else ():
        if "masked_sentence" in one:
            yield one.name("masked_sentence"), one.string("masked_sentence"), one.optional("sub_surface") or subject


def parse(record: Fields, number: int) -> Iterator[Fact]:
    """A record by itself."""
    yield from _Templates(()).parse(record, number)


def _begin(items: Iterable[Item], zsre: ZsreForm) -> Parse:
    return _Templates(items).parse


def _is_relation(record: Mapping[str, Any]) -> bool:
    """Whether it is a line of relations.jsonl."""
    return {"relation", "template"} <= record.keys() and not {"sub_label", "obj_label", "sub"} & record.keys()


def _fits(record: Mapping[str, Any]) -> bool:
    if "pattern" in record or "target_true" in record:
        return False
    return "obj_label" in record or (_is_relation(record) and OBJECT in str(record["template"]))


FORMAT = Format(
    "lama",
    "LAMA",
    marks(
        "sub_label obj_label predicate_id",
        "sub_label obj_label template",
        "obj_label masked_sentences",
        "obj_label masked_sentence",
        "obj_label evidences",
        "relation template label",
    ),
    parse,
    fits=_fits,
    begin=_begin,
)
