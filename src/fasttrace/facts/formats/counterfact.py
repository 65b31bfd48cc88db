"""CounterFact (Meng et al. 2022, rome.baulab.info/data, MIT) and multi_counterfact of MEMIT, which has the same fields.

target_new is o_false. The paraphrases and the neighborhood prompts are the fact's probes. The id is
"counterfact/<case_id>". generation_prompts, attribute_prompts and other fields are kept as `meta`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from fasttrace.facts.fields import Fields, two_targets
from fasttrace.facts.formats.base import Format, marks
from fasttrace.facts.record import Fact


def parse(record: Fields, number: int) -> Iterator[Fact]:
    identity = record.identity("case_id")
    rewrite = record.inside("requested_rewrite")
    prompt, subject = rewrite.template("prompt"), rewrite.string("subject")
    true, new = (rewrite.inside(key).string("str") for key in ("target_true", "target_new"))
    true, false = two_targets(true, new, rewrite.name("target_new.str"))
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
        meta=record.rest() | rewrite.rest(),
    )


def _one_edit(record: Mapping[str, Any]) -> bool:
    rewrite = record["requested_rewrite"]
    return not isinstance(rewrite, list) or not rewrite  # a list of edits is MQuAKE's


FORMAT = Format(
    "counterfact", "CounterFact", marks("requested_rewrite"), parse, hint=frozenset({"case_id"}), fits=_one_edit
)
