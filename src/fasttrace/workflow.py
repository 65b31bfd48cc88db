"""Computing into a store: skip what it has, commit every batch, and go on where a run stopped."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from fasttrace.editing.mass import MASS_SCORES, MassPlan
from fasttrace.editing.plan import EditPlan
from fasttrace.facts import Fact
from fasttrace.models.adapter import Decoder
from fasttrace.tracing.known import BATCH, check_known, known_run
from fasttrace.tracing.sweep import TracePlan

if TYPE_CHECKING:
    from fasttrace.store import Store

Progress = Callable[[int], None]


def known_into(
    store: "Store", model: Decoder, facts: Sequence[Fact], protocol: str, progress: Progress, enough: int | None = None
) -> list[dict[str, Any]]:
    """Verdicts of the facts, in their order, computed where the store lacks them.

    enough: stop once so many facts are known; facts not looked at have no verdict.
    """
    store.add_facts(facts)
    run_id = known_run(model, protocol)["run_id"]
    verdicts: dict[str, dict[str, Any]] = {}
    if store.done(run_id):
        rows = store.query("SELECT * FROM known WHERE run_id = ?", [run_id]).to_pylist()
        wanted = {fact.fact_id for fact in facts}
        verdicts = {row["fact_id"]: row for row in rows if row["fact_id"] in wanted}
    for i in range(0, len(facts), BATCH):
        part = facts[i : i + BATCH]
        todo = [fact for fact in part if fact.fact_id not in verdicts]
        if todo:
            result = check_known(model, todo, protocol=protocol)
            store.add(result)
            verdicts |= {row["fact_id"]: row for row in result.verdicts.to_pylist()}
        progress(len(part))
        if enough is not None and sum(row["known"] for row in verdicts.values()) >= enough:
            break
    return [verdicts[fact.fact_id] for fact in facts if fact.fact_id in verdicts]


@dataclass
class Effort:
    """What a sweep added to a store: facts, and the seconds and FLOPs of tracing (knowledge tests not counted)."""

    facts: int = 0
    seconds: float = 0.0
    flops: float = 0.0


def trace_into(store: "Store", plan: TracePlan, progress: Progress) -> Effort:
    """Run what the store lacks of a sweep, committing every batch."""
    store.add_facts([encoded.fact for encoded in plan.encoded])
    mine = {encoded.fact_id for encoded in plan.encoded}
    done = store.done(plan.run["run_id"]) & mine
    progress(len(done))
    effort = Effort()
    for batch in plan.batches(skip=done, progress=progress):
        effort.facts += store.add(batch)
        if batch.run["flops"]:
            effort.seconds += batch.run["seconds"]
            effort.flops += batch.run["flops"]
    return effort


def edit_into(store: "Store", plan: EditPlan, progress: Progress) -> int:
    """Run what the store lacks of a set of edits; returns how many edits were added."""
    store.add_facts([encoded.fact for encoded in plan.encoded])
    if plan.moments is not None:
        store.add(plan.moments)
    mine = {(encoded.fact_id, layer) for encoded in plan.encoded for layer in plan.layers}
    done = store.done_edits(plan.run["run_id"]) & mine
    progress(len(done))
    return sum(store.add(batch) for batch in plan.batches(skip=done, progress=progress))


def mass_into(store: "Store", plan: MassPlan, progress: Progress) -> pa.Table:
    """The scores of a mass edit (MASS_SCORES), computed where the store lacks them and committed whole.

    One model carries the edits, so there is nothing to go on from in between.
    """
    store.add_facts([encoded.fact for encoded in plan.plan.encoded])
    if plan.plan.moments is not None:
        store.add(plan.plan.moments)
    names = ", ".join(MASS_SCORES.names)
    sql = f"SELECT {names} FROM mass_edits WHERE run_id = ? ORDER BY landed, position"
    kept = store.query(sql, [plan.run["run_id"]])
    if set(kept["fact_id"].to_pylist()) == {encoded.fact_id for encoded in plan.plan.encoded}:
        progress(len(plan.facts))
        return kept
    result = plan.compute(progress=progress)
    store.add(result)
    return result.scores
