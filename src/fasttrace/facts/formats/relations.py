"""The relations of Hernandez et al. 2023 (linear relational embeddings, github.com/evandez/relations, MIT).

A file, or one record, is a relation: its name, templates and samples of a subject and an object. Each sample is a fact.
Its prompt is the first zero-shot template, or the first template where there is none. The other templates, the
zero-shot ones first, are paraphrases. The id is "relations/<name with underscores>/<place among the samples>".

A few of the published texts have an escape such as \\u00ed as six plain characters. It is decoded, and the fact's
`meta` has "decoded": true.
"""

import json
import re
from collections.abc import Iterator

from fasttrace.facts.fields import PLACE, Bad, Fields, kind, one_place
from fasttrace.facts.formats.base import Format, marks
from fasttrace.facts.record import Fact
from fasttrace.facts.subject import PLACES

_ESCAPES = re.compile(r"(?:\\u[0-9a-fA-F]{4})+")


def parse(record: Fields, number: int) -> Iterator[Fact | Bad]:
    name = record.string("name")
    prompt, *others = _templates(record)
    samples = record.need("samples")
    if not isinstance(samples, list):
        raise record.bad("samples", f"expected a list of subjects and objects, got {kind(samples)}")
    if not samples:
        raise record.bad("samples", "expected at least one subject with its object, got an empty list")
    rest = record.rest()
    for i, value in enumerate(samples):
        place = f"{record.name('samples')}[{i}]"
        if not isinstance(value, dict):
            yield Bad(place, f"expected a JSON object, got {kind(value)}")
            continue
        sample = Fields(value, f"{place}.", record.left_out, record.file)
        try:
            given = sample.string("subject").strip(), sample.string("object").strip()
        except Bad as bad:
            yield bad
            continue
        subject, target = (decoded(text) for text in given)
        yield Fact(
            prompt,
            subject,
            target,
            relation=name,
            paraphrases=tuple(template.replace(PLACE, subject) for template in others),
            fact_id=f"relations/{'_'.join(name.split())}/{i}",
            source="relations",
            meta=rest | sample.rest() | ({} if given == (subject, target) else {"decoded": True}),
        )


def _templates(record: Fields) -> list[str]:
    """The templates, the zero-shot ones first, each once. One without a place for the subject is left out."""
    found: dict[str, None] = {}
    flaw = None
    for key in ("prompt_templates_zs", "prompt_templates"):
        for i, text in enumerate(record.strings(key) if key in record else ()):
            place = next((one for one in (PLACE, *PLACES) if one in text), PLACE)
            try:
                found.setdefault(one_place(text, f"{record.name(key)}[{i}]", place))
            except Bad as bad:
                flaw = bad
                record.leave_out(bad)
    if not found:
        raise flaw or record.bad("prompt_templates", "expected at least one template, got none")
    return list(found)


def decoded(text: str) -> str:
    """The text with the characters that its escapes stand for, itself where they stand for none."""
    plain = _ESCAPES.sub(lambda found: json.loads(f'"{found[0]}"'), text)
    return text if any("\ud800" <= c <= "\udfff" for c in plain) else plain


FORMAT = Format("relations", "relations (LRE)", marks("samples prompt_templates", "samples prompt_templates_zs"), parse)
