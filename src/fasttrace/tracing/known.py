"""Which facts a model knows: o_true among the first 36 greedy tokens (paper, Appendix A, "Data Filtering")."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pyarrow as pa

from fasttrace.facts import AnyFacts, EncodedFact, Fact, facts_from
from fasttrace.models.adapter import AnyModel, Decoder
from fasttrace.models.encode import encoded_facts
from fasttrace.models.generate import greedy_tokens
from fasttrace.models.packed import sequence_logprob
from fasttrace.protocols import Protocol
from fasttrace.runs import Run, describe_run
from fasttrace.settings.arguments import checked
from fasttrace.settings.base import settings
from fasttrace.settings.kinds import MOST_ITEMS, Bounds
from fasttrace.settings.prompt import StatedFact
from fasttrace.show.results import Shown
from fasttrace.show.watched import watched
from fasttrace.show.words import count, title_of

GREEDY_TOKENS = 36
NOT_SAID, UNLIKELY = "o_true is not among the first", "p(o_true) ="  # how the reasons begin for a fact that is unknown
RELEASED_FLOOR = 0.02
BATCH = 32  # facts checked together, and thus the most that a killed process loses

VERDICTS = pa.schema(
    [
        ("fact_id", pa.string()),
        ("known", pa.bool_()),
        ("p_true", pa.float64()),
        ("p_first_token_top", pa.bool_()),
        ("continuation", pa.string()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True, eq=False, repr=False)
class KnownResult(Shown):
    """run: the `runs` row. verdicts: one row per fact (VERDICTS), with p(o_true), the greedy tokens and the reason."""

    TABLES: ClassVar = ("verdicts",)

    run: Run
    verdicts: pa.Table

    def _line(self) -> str:
        known, model = sum(self.verdicts["known"].to_pylist()), title_of(self.run["model"])
        facts = count(len(self.verdicts), "fact")
        return f"{known:,} of {facts} known, {model}, {self.run['protocol']}; {self.run['seconds']:.1f} s"


def known_run(model: Decoder, protocol: str) -> Run:
    """The `runs` row of a known-facts check."""
    settings = {"greedy_tokens": GREEDY_TOKENS, "ignore_case": True}  # an older run without ignore_case told case apart
    return describe_run("facts", model, settings, seed=0, protocol=protocol)


@settings("check_known")
class _Stated(StatedFact):
    """What makes a prompt a fact."""


@checked
def check_known(
    model: AnyModel,
    facts: AnyFacts,
    *,
    subject: str | None = None,
    target: str | None = None,
    protocol: Protocol = "paper",
    batch: Annotated[int, Bounds(least=1, most=MOST_ITEMS)] = BATCH,
    progress: Callable[[int], None] | bool | None = None,
) -> KnownResult:
    """Test which facts a model knows.

    facts: as `load_facts` returns them, one Fact, or a prompt as text with its subject and target.
    protocol: with "paper", o_true must occur in the text of the first 36 greedy tokens, without regard to case as in
        the released code. With "released", p(o_true) must also be at least 0.02. After a long prompt there are fewer
        tokens, as many as the model has positions for.
    batch: how many prompts are continued together. progress(n) is called after n more facts;
        by default there is a bar, where stderr is a terminal or a notebook. False: nothing.

    Before any pass, it raises FactError for a fact that cannot be encoded, and ModelError where the model has too few
    positions for a prompt and its o_true.
    Source: paper, Appendix A; docs/algorithms.md, section 2 ("Known facts").
    """
    begun = time.perf_counter()
    encoded = encoded_facts(model, facts_from(facts, _Stated(subject=subject, target=target)))
    rows: list[dict[str, Any]] = []
    with watched(progress) as watch, watch.bar("Checking facts", len(encoded)) as done:
        for i in range(0, len(encoded), batch):
            rows += _verdicts(model, encoded[i : i + batch], protocol)
            done(len(encoded[i : i + batch]))
    run = known_run(model, protocol)
    run["seconds"] = time.perf_counter() - begun
    return KnownResult(run, pa.Table.from_pylist(rows, schema=VERDICTS))


def verdicts_of(model: Decoder, facts: Sequence[Fact], protocol: Protocol) -> dict[str, dict[str, Any]]:
    """fact_id → row of VERDICTS, of facts that are tested together. Errors: those of `check_known`."""
    found = check_known(model, facts, protocol=protocol, progress=False)
    return {row["fact_id"]: row for row in found.verdicts.to_pylist()}


def _verdicts(model: Decoder, facts: Sequence[EncodedFact], protocol: str) -> list[dict[str, Any]]:
    continuations = greedy_tokens(model, [f.ids for f in facts], GREEDY_TOKENS)
    logp = sequence_logprob(model, [f.ids for f in facts], [f.target_true_ids for f in facts])
    rows = []
    for fact, tokens, p in zip(facts, continuations, logp.exp().tolist(), strict=True):
        text = model.tokenizer.decode(tokens)
        found = fact.fact.target_true.strip().casefold() in text.casefold()
        reason = None
        if not found:
            room = model.room(len(fact.ids), GREEDY_TOKENS)
            reason = f"{NOT_SAID} {room} greedy tokens"
            if room < GREEDY_TOKENS:
                reason += f" (not {GREEDY_TOKENS}, since '{model.name}' has {model.positions} positions)"
        elif protocol == "released" and p < RELEASED_FLOOR:
            reason = f"{UNLIKELY} {p:.4f} is below {RELEASED_FLOOR}"
        rows.append(
            {
                "fact_id": fact.fact_id,
                "known": reason is None,
                "p_true": p,
                "p_first_token_top": bool(tokens) and tokens[0] == fact.target_true_ids[0],
                "continuation": text,
                "reason": reason,
            }
        )
    return rows
