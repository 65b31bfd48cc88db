"""known_1000 (Meng et al. 2022, rome.baulab.info/data, MIT): facts that GPT2-XL knows.

The prompt is `prompt` where it is given (the filled template and the model's text up to the attribute), otherwise the
filled template. attribute is o_true; there is no o_false. The id is "known/<known_id>".
"""

from collections.abc import Iterator

from fasttrace.errors import shown
from fasttrace.facts.fields import Fields, one_place
from fasttrace.facts.formats.base import Format, marks
from fasttrace.facts.record import Fact


def parse(record: Fields, number: int) -> Iterator[Fact]:
    identity = record.identity("known_id")
    subject, template = record.string("subject"), record.template("template")
    true = record.string("attribute").strip()
    prompt = record.optional("prompt")
    if prompt is not None:
        filled = template.replace("{}", subject)
        if subject not in prompt:
            raise record.bad("prompt", f"the subject {shown(subject)} is absent from {shown(prompt)}")
        if not prompt.startswith(filled):
            what = f"{shown(prompt)} does not begin with the filled template {shown(filled)}"
            raise record.bad("prompt", what)
        # In about a third of known_1000 the prompt continues after the template, up to the attribute.
        template = one_place(template + prompt[len(filled) :], "prompt")
    yield Fact(
        template,
        subject,
        true,
        relation=record.optional("relation_id"),
        fact_id=f"known/{identity}",
        source="known",
        meta=record.rest(),
    )


FORMAT = Format("known", "known_1000", marks("attribute template"), parse, hint=frozenset({"known_id"}))
