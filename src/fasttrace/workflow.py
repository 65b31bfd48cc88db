"""Computations whose results go to a store. Each skips what the store has, and commits every batch."""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from fasttrace.cache import cache_root
from fasttrace.cluster.crew import Alone, Crew
from fasttrace.cluster.pieces import Unit, share
from fasttrace.editing.breaks import MEASURES, NORMS
from fasttrace.editing.collect import collected, resolved
from fasttrace.editing.judge import Judge, judged
from fasttrace.editing.mass import MassPlan
from fasttrace.editing.mass_result import MASS_SCORES
from fasttrace.editing.moments import Moments
from fasttrace.editing.plan import EditPlan
from fasttrace.errors import UserError
from fasttrace.facts import Fact, distinct
from fasttrace.models.encode import check_encodable
from fasttrace.protocols import Protocol
from fasttrace.settings.base import replaced
from fasttrace.settings.moments import MomentSettings
from fasttrace.show.words import count
from fasttrace.tracing.effects import CONTRASTS
from fasttrace.tracing.known import BATCH, check_known, known_run
from fasttrace.tracing.result import TraceResult
from fasttrace.tracing.sweep import TracePlan

if TYPE_CHECKING:
    from fasttrace.store import Store

JUDGEMENTS = pa.schema(
    [
        ("prompt", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("generated_after", pa.string()),
        ("judged_after", pa.bool_()),
        ("judge_error", pa.string()),
    ]
)
Progress = Callable[[int], None]


def known_into(
    store: "Store",
    crew: Crew,
    facts: Sequence[Fact],
    protocol: Protocol,
    progress: Progress,
    enough: int | None = None,
) -> list[dict[str, Any]]:
    """Verdicts on the facts, in their order, computed where the store lacks them.

    enough: stop once this many facts are known. The remaining facts have a verdict only where the store has one.
    """
    store.add_facts(facts)
    run_id = crew.ask(known_run, protocol)["run_id"]
    verdicts: dict[str, dict[str, Any]] = {}
    if store.done(run_id):
        rows = store.query("SELECT * FROM known WHERE run_id = ?", [run_id]).to_pylist()
        fact_ids = {fact.fact_id for fact in facts}
        verdicts = {row["fact_id"]: row for row in rows if row["fact_id"] in fact_ids}
    untested = [fact for fact in facts if fact.fact_id not in verdicts]
    crew.ask(check_encodable, untested)  # raises before any pass
    parts = [facts[i : i + BATCH] for i in range(0, len(facts), BATCH)]
    todo = [[fact for fact in part if fact.fact_id not in verdicts] for part in parts]
    check = partial(check_known, protocol=protocol, progress=False)
    with closing(crew.map(check, ((some,) for some in todo if some))) as results:
        reached: set[str] = set()
        for part, some in zip(parts, todo, strict=True):
            if some:
                result = next(results)
                store.add(result)
                verdicts |= {row["fact_id"]: row for row in result.verdicts.to_pylist()}
            progress(len(part))
            reached |= {fact.fact_id for fact in part}
            if enough is not None and sum(verdicts[fact_id]["known"] for fact_id in reached) >= enough:
                break
    return [verdicts[fact.fact_id] for fact in facts if fact.fact_id in verdicts]


def tested_share(facts: Sequence[Fact], shard: tuple[int, int] | None) -> list[Fact]:
    """Share i of n of the facts to be tested, or all for None. Those that are tested together stay together."""
    if shard is None:
        return list(facts)
    units = [Unit(fact.fact_id, len(fact.text), n % BATCH == 0) for n, fact in enumerate(facts)]
    mine = share(units, *shard)
    return [fact for fact in facts if fact.fact_id in mine]


def known_rows(crew: Crew, facts: Sequence[Fact], protocol: Protocol, progress: Progress) -> list[dict[str, Any]]:
    """Verdicts on the facts, in their order, of which no store knows."""
    crew.ask(check_encodable, facts)  # raises before any pass
    one_of_each = distinct(facts)
    parts = [one_of_each[i : i + BATCH] for i in range(0, len(one_of_each), BATCH)]
    found: list[dict[str, Any]] = []
    for result in crew.map(partial(check_known, protocol=protocol, progress=False), ((part,) for part in parts)):
        found += result.verdicts.to_pylist()
        progress(len(result.verdicts))
    return found


def known_stored(store: "Store", facts: Sequence[Fact], run_id: str) -> list[dict[str, Any]] | None:
    """Verdicts of a knowledge test on the facts, in their order, or None where the store lacks one.

    Raises StoreError as `Store.add_facts`.
    """
    if not _has_facts(store, facts, {fact.fact_id for fact in facts}):
        return None
    rows = store.query("SELECT * FROM known WHERE run_id = ?", [run_id]).to_pylist()
    verdicts = {row["fact_id"]: row for row in rows}
    if not all(fact.fact_id in verdicts for fact in facts):
        return None
    return [verdicts[fact.fact_id] for fact in facts]


def has_traced(store: "Store", facts: Sequence[Fact], run_id: str, contrasts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a tracing run in the store has finished those of the facts that `contrasts` has.

    contrasts: rows of `TracePlan.contrasts`. Raises StoreError as `Store.add_facts` and `Store.check_contrasts`.
    """
    wanted = {row["fact_id"] for row in contrasts}
    store.check_contrasts(run_id, pa.Table.from_pylist(list(contrasts), schema=CONTRASTS))
    return _has_facts(store, facts, wanted) and wanted <= store.done(run_id)


def has_edited(
    store: "Store", facts: Sequence[Fact], run_id: str, fact_ids: Sequence[str], layers: Sequence[int]
) -> bool:
    """Whether an editing run in the store has finished those of the facts that have these ids, at the layers.

    Raises StoreError as `Store.add_facts`.
    """
    return _has_facts(store, facts, set(fact_ids)) and set(product(fact_ids, layers)) <= store.done_edits(run_id)


def mass_scores(store: "Store", facts: Sequence[Fact], run_id: str, fact_ids: Sequence[str]) -> pa.Table | None:
    """The scores of a mass edit (MASS_SCORES), or None where the store lacks it. Arguments, errors: `has_edited`."""
    wanted = set(fact_ids)
    if not _has_facts(store, facts, wanted):
        return None
    names = ", ".join(MASS_SCORES.names)
    stored = store.query(f"SELECT {names} FROM mass_edits WHERE run_id = ? ORDER BY n_edits, position", [run_id])
    return stored if set(stored["fact_id"].to_pylist()) == wanted else None


def mass_measured(store: "Store", run_id: str) -> tuple[pa.Table, pa.Table]:
    """The measures and norms of a mass edit in the store (MEASURES, NORMS), without rows where it is an older one's."""
    measures, norms = (
        store.query(f"SELECT {', '.join(schema.names)} FROM {relation} WHERE run_id = ?", [run_id])
        for relation, schema in (("mass_measures", MEASURES), ("mass_norms", NORMS))
    )
    return measures, norms


def _has_facts(store: "Store", facts: Sequence[Fact], fact_ids: set[str]) -> bool:
    """Whether there is a store and a fact to look for. The store then has those of the facts with these ids. A run is
    named without its facts, so only this finds one that has changed under its fact_id."""
    if not fact_ids or not store.path.exists():
        return False
    store.add_facts([fact for fact in facts if fact.fact_id in fact_ids])
    return True


@dataclass
class Effort:
    """What a sweep added to a store: number of facts, and seconds and FLOPs of the tracing without knowledge tests."""

    facts: int = 0
    seconds: float = 0.0
    flops: float = 0.0


def trace_into(
    store: "Store",
    plan: TracePlan,
    progress: Progress,
    show: Callable[[TraceResult], None] | None = None,
    *,
    crew: Crew | None = None,
    only: Collection[Hashable] | None = None,
) -> Effort:
    """Run the part of a sweep that the store lacks, committing every batch. Raises StoreError as `has_traced`.

    show: called with the first batch that has cells, after it is committed. crew: who computes, None for this process.
    only: fact_ids of a share of the sweep, None for all of it.
    """
    store.check_contrasts(plan.run["run_id"], plan.contrasts)
    store.add_facts([encoded.fact for encoded in plan.encoded])
    planned = {encoded.fact_id for encoded in plan.encoded}
    wanted = planned if only is None else planned & {*only}
    done = store.done(plan.run["run_id"]) & wanted
    progress(len(done))
    effort = Effort()
    skip = done | (planned - wanted)
    for batch in (crew or Alone(plan.model)).batches(plan, skip=skip, progress=progress):
        effort.facts += store.add(batch)
        if show is not None and len(batch.cells):
            show(batch)
            show = None
        if batch.run["flops"]:
            effort.seconds += batch.run["seconds"]
            effort.flops += batch.run["flops"]
    return effort


def collect_moments(
    crew: Crew,
    asked: MomentSettings,
    progress: Callable[[str, int, int], None] | None = None,
    shard: tuple[int, int] | None = None,
) -> Moments:
    """`second_moments` by a crew. What is collected is kept in this process's cache folder.

    shard: i of n collects every n-th layer, beginning with the i-th. Raises UserError where there are fewer layers.
    """
    wanted, experts = crew.ask(resolved, asked)
    if shard is not None:
        number, of = shard
        layers = list(wanted.layers or ())[number - 1 :: of]
        if not layers:
            raise UserError(f"shard: expected at most as many shares as layers, got {number} of {of}")
        wanted = replaced(wanted, layers=layers)
        experts = {layer: some for layer, some in experts.items() if layer in layers}
    return collected(crew, wanted, experts, cache_root(None), progress)


def edit_into(
    store: "Store",
    plan: EditPlan,
    progress: Progress,
    *,
    crew: Crew | None = None,
    only: Collection[Hashable] | None = None,
) -> int:
    """Run the edits that the store lacks. Returns how many were added.

    crew: as in `trace_into`. only: (fact_id, layer) of a share of the edits, None for all.
    """
    store.add_facts([encoded.fact for encoded in plan.encoded])
    if plan.moments is not None:
        store.add(plan.moments)
    if plan.judge is not None:
        ask_again(store, plan.run["run_id"], plan.judge)
    planned = {(encoded.fact_id, layer) for encoded in plan.encoded for layer in plan.layers}
    wanted = planned if only is None else planned & {*only}
    done = store.done_edits(plan.run["run_id"]) & wanted
    progress(len(done))
    skip = done | (planned - wanted)
    return sum(store.add(one) for one in (crew or Alone(plan.model)).batches(plan, skip=skip, progress=progress))


def ask_again(store: "Store", run_id: str, judge: Judge) -> None:
    """Ask a judge about the texts of an editing run in the store that it failed to judge."""
    failed = store.failed_judgements(run_id)
    if not failed:
        return
    rows = [(*question, *said) for question, said in judged(judge, failed).items()]
    columns = zip(*rows, strict=True)
    store.add_judgements(run_id, pa.table(dict(zip(JUDGEMENTS.names, columns, strict=True)), schema=JUDGEMENTS))


def reasons(store: "Store", plan: EditPlan) -> str | None:
    """How many of a plan's edits in the store have a reason, and one of the reasons; None where none has."""
    sql = "SELECT count(*) AS n, min(reason) AS why FROM edits WHERE run_id = ? AND reason IS NOT NULL"
    [row] = store.query(sql, [plan.run["run_id"]]).to_pylist()
    return f"{count(row['n'], 'edit has', 'edits have')} a reason, such as: {row['why']}" if row["n"] else None


def mass_into(store: "Store", plan: MassPlan, progress: Progress) -> pa.Table:
    """The scores of a mass edit (MASS_SCORES), computed where the store lacks them and committed as a whole.

    An interrupted computation goes on from its checkpoint in the cache.
    """
    facts = [encoded.fact for encoded in plan.plan.encoded]
    store.add_facts(facts)
    if plan.plan.moments is not None:
        store.add(plan.plan.moments)
    stored = mass_scores(store, facts, plan.run["run_id"], [fact.fact_id for fact in facts])
    if stored is not None:
        progress(len(plan.facts))
        return stored
    result = plan.compute(progress=progress)
    store.add(result)
    plan.checkpoint.unlink(missing_ok=True)
    return result.scores
