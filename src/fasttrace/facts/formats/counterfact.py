"""CounterFact (Meng et al. 2022, rome.baulab.info/data, MIT) and multi_counterfact of MEMIT, which has the same fields.

target_new is o_false. The paraphrases and the neighborhood prompts are the fact's probes. The id is
"counterfact/<case_id>". generation_prompts, attribute_prompts, the other fields of the targets and the rest are kept as
`meta`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from fasttrace.facts.fields import Fields, two_targets
from fasttrace.facts.formats.base import Format, marks
from fasttrace.facts.formats.parts import rests
from fasttrace.facts.record import Fact


def parse(record: Fields, number: int) -> Iterator[Fact]:
    identity = record.identity("case_id")
    rewrite = record.inside("requested_rewrite")
    prompt, subject = rewrite.template("prompt"), rewrite.string("subject")
    old, new = (rewrite.inside(key) for key in ("target_true", "target_new"))
    true, false = two_targets(old.string("str"), new.string("str"), new.name("str"))
    yield Fact(
        prompt,
        subject,
        true,
        false,
        relation=rewrite.optional("relation_id"),
        paraphrases=record.wholes("paraphrase_prompts"),
        neighborhood=record.wholes("neighborhood_prompts"),
        fact_id=f"counterfact/{identity}",
        source="counterfact",
        meta=record.rest() | rewrite.rest() | rests(target_true=old, target_new=new),
    )


def _one_edit(record: Mapping[str, Any]) -> bool:
    rewrite = record["requested_rewrite"]
    return not isinstance(rewrite, list) or not rewrite  # a list of edits is MQuAKE's


FORMAT = Format(
    "counterfact", "CounterFact", marks("requested_rewrite"), parse, hint=frozenset({"case_id"}), fits=_one_edit
)
