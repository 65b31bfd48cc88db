"""Edits per second of editing in batches, and of the released way, which makes one edit at a time.

.venv/bin/python bench/bench_edits.py [--parts rome memit ft-1 ft-5 sequence scoring memory] [--facts 8]
    [--layers 3 9 15 21 27] [--contexts 20] [--apart 1] [--rounds 3] [--out FILE] [--store FILE]

SmolLM2-135M, float32, error injection, the default hyperparameters. "released" is bench/released_edits.py. It makes
only --apart edits per layer, and its row has their difference from fasttrace's. memit and ft-5 have no such rival here
and are compared with one call per edit. sequence: MEMIT of one fact after another in one model, at the second of
--layers without prefixed contexts, with earlier keys. memory: the peak resident set of a fresh process minus its
resident set after loading the model, for each budget.
"""

import argparse
import ctypes
import gc
import itertools
import json
from collections.abc import Iterator
from typing import Any

import released_edits as released
import torch
from harness import BenchRow, Results, about, command, fresh, peak_bytes, positive, seconds, spread, writes

import fasttrace as ft
from fasttrace.editing import prepare_edit
from fasttrace.editing.plan import EditPlan
from fasttrace.editing.scores import Scorer
from fasttrace.editing.value import contexts_of

PARTS = ("rome", "memit", "ft-1", "ft-5", "sequence", "scoring", "memory")
BUDGETS = ("128MB", "256MB", "512MB", "1GB")
SETTINGS: dict[str, Any] = {"layers": [3, 9, 15, 21, 27], "contexts": 20, "essence": 0}
CORPUS_TOKENS = 20_000


def plan_of(model: Any, facts: list[ft.Fact], method: str, **changed: Any) -> EditPlan:
    return prepare_edit(model, facts, method=method, corpus_tokens=CORPUS_TOKENS, **{**SETTINGS, **changed})


def optimised(plan: EditPlan) -> list[Any]:
    """Every edit of the plan, unscored, within a budget of 1 GiB."""
    todo = [(fact, list(plan.layers)) for fact in plan.encoded]
    return [edit for group in plan.groups(todo, 1 << 30) for edit in plan.optimise(group)]


def rate(row: BenchRow, edits: int) -> BenchRow:
    return {**row, "edits": edits, "edits/s": edits / row["seconds"]}


def method(model: Any, facts: list[ft.Fact], name: str, rounds: int, apart: int) -> Iterator[BenchRow]:
    plan = plan_of(model, facts, name)
    few = [(fact, layer) for fact in plan.encoded[:apart] for layer in plan.layers]
    edits = {(e.fact_id, e.layer): e for e in optimised(plan)}
    row = {"benchmark": f"editing: {name}"}
    case = f"{len(facts)} facts × {len(plan.layers)} layers"
    yield {
        **row,
        "case": case,
        "impl": "fasttrace",
        **rate(seconds(lambda: optimised(plan), rounds, warm=False), len(edits)),
    }
    if name not in ("rome", "ft-1"):
        yield {
            **row,
            "case": case,
            "impl": "fasttrace, a call an edit",
            **rate(seconds(lambda: [plan.optimise([(fact, [layer])]) for fact, layer in few], 1, warm=False), len(few)),
        }
        return
    found: list[torch.Tensor] = []

    def one_at_a_time() -> None:
        for fact, layer in few:
            targets, settings = plan.target_ids(fact), plan.hyperparameters
            if name == "rome":
                contexts = contexts_of(model, fact, targets, plan.contexts)
                found.append(released.value(model.hf, contexts, layer, settings))
            else:
                found.append(released.tuned(model.hf, fact, targets, layer, settings))

    taken = seconds(one_at_a_time, 1, warm=False)
    off = []
    for (fact, layer), theirs in zip(few, found, strict=True):
        ours = edits[fact.fact_id, layer]
        if name == "rome":
            delta = ours.updates[layer].value[0] * ours.denominator
            off.append(float((delta - theirs).norm() / theirs.norm()))
        else:
            differs = (ours.updates[layer].change - theirs).abs() > 1e-3 * plan.hyperparameters.epsilon
            off.append(float(differs.float().mean()))
    what = "relative distance of δ" if name == "rome" else "share of weights that differ"
    distances = {f"{what}, median": sorted(off)[len(off) // 2], f"{what}, most": max(off)}
    yield {**row, "case": case, "impl": "released", **rate(taken, len(few)), **distances}


def sequence(model: Any, facts: list[ft.Fact], rounds: int, apart: int) -> Iterator[BenchRow]:
    layer, few, row = SETTINGS["layers"][1], facts[:apart], {"benchmark": "editing: a sequence"}
    plan = plan_of(model, few, "memit", layers=[layer], contexts=0)
    moments, window = plan.moments, plan.window(layer)
    assert moments is not None

    def ours(some: list[ft.Fact], at_once: int) -> Any:
        shared = {"layer": layer, "contexts": 0, "moments": moments, "score_every": len(some)}
        return ft.mass_edit(model, some, method="memit", at_once=at_once, **shared)

    for at_once, some in ((10, facts), (1, few)):
        results = [ours(some, at_once) for _ in range(rounds)]
        taken = spread([one.measures["edit_seconds"][-1].as_py() for one in results])
        impl = "fasttrace" if at_once > 1 else "fasttrace, a solve an edit"
        yield {**row, "case": f"{len(some)} facts, {at_once} at once", "impl": impl, **rate(taken, len(some))}
    mine = results[-1].updates
    C = {at: moments.matrix(at).double() for at in window}
    before = {at: model.blocks[at].down.clone() for at in window}

    def released_way() -> None:
        past = {at: torch.zeros_like(one) for at, one in C.items()}
        for fact in plan.encoded:
            contexts = contexts_of(model, fact, plan.target_ids(fact), plan.contexts)
            released.memit(model.hf, contexts, window, plan.hyperparameters, C, past)

    taken = seconds(released_way, 1, warm=False)
    off = []
    for at, weight in before.items():
        theirs = model.blocks[at].down - weight
        off.append(float((mine[at].matrix() - theirs).norm() / theirs.norm()))
        model.blocks[at].down.copy_(weight)
    case = f"{len(few)} facts, 1 at once"
    yield {**row, "case": case, "impl": "released", **rate(taken, len(few)), "relative distance of ΔW, most": max(off)}


def scoring(model: Any, facts: list[ft.Fact], rounds: int, apart: int) -> Iterator[BenchRow]:
    plan = plan_of(model, facts, "rome", contexts=0)
    edits = optimised(plan)
    number = {f.fact_id: i for i, f in enumerate(plan.encoded)}
    work = [(number[e.fact_id], e) for e in edits]
    prompts = [plan.prompts(f) for f in plan.encoded]

    def together() -> list[Any]:
        return Scorer(model, prompts, plan.layers).after(work)

    after = together()
    few = [i for i, (n, _) in enumerate(work) if n < apart]
    change = lambda e: e.updates[e.layer].matrix().float()  # noqa: E731
    off = [0.0]

    def one_at_a_time() -> None:
        for i in few:
            n, e = work[i]
            found = released.scored(model.hf, plan, plan.encoded[n], e.layer, change(e))
            mine = after[i].logp[:, :2].reshape(-1)
            off[0] = max(off[0], float(abs(torch.tensor(found).exp() - torch.tensor(mine).exp()).max()))

    row = {"benchmark": "editing: scoring", "case": f"{len(facts)} facts × {len(plan.layers)} layers"}
    yield {**row, "impl": "fasttrace", **rate(seconds(together, rounds), len(work))}
    taken = seconds(one_at_a_time, 1, warm=False)
    yield {**row, "impl": "released", **rate(taken, len(few)), "difference": off[0]}


def memory(name: str) -> Iterator[BenchRow]:
    for budget in BUDGETS:
        row = {"benchmark": f"editing: memory of {name}", "case": f"memory {budget}", "impl": "fasttrace", "n": 1}
        yield {**row, **fresh(__file__, "--peak", name, budget)}


def peak(name: str, budget: str) -> None:
    """Print the peak bytes above the loaded model as JSON. Runs in the fresh process."""
    model = ft.load_model()
    plan = plan_of(model, interleaved(8), name, layers=[3, 15], contexts=5)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before, most = peak_bytes(lambda: list(plan.batches(memory=budget)))
    print(json.dumps({"bytes": most - before, "bytes_loaded": before, "bytes_peak": most}))


def interleaved(count: int) -> list[ft.Fact]:
    return ft.load_facts(order="interleaved", limit=count)


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--facts", type=positive, default=8)
    parser.add_argument("--layers", type=int, nargs="+", default=SETTINGS["layers"])
    parser.add_argument("--contexts", type=int, default=SETTINGS["contexts"])
    parser.add_argument("--apart", type=positive, default=1, help="facts that are edited one at a time")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--peak", nargs=2, metavar=("METHOD", "BUDGET"), help=argparse.SUPPRESS)
    writes(parser.add_argument)
    options = parser.parse_args()
    if options.peak:
        return peak(*options.peak)
    SETTINGS.update(layers=options.layers, contexts=options.contexts)
    told = about("cpu", settings=SETTINGS, dtype="float32")
    with Results("edits", told, options.out, options.store) as results:
        model, facts = ft.load_model(), interleaved(options.facts)
        for part in options.parts:
            for row in rows_of(part, model, facts, options):
                results.add(row)
                print(json.dumps(row, ensure_ascii=False), flush=True)


def rows_of(part: str, model: Any, facts: list[ft.Fact], options: argparse.Namespace) -> Iterator[BenchRow]:
    if part == "scoring":
        return scoring(model, facts, options.rounds, options.apart)
    if part == "sequence":
        return sequence(model, facts, options.rounds, options.apart)
    if part == "memory":
        return itertools.chain(*(memory(name) for name in ("rome", "ft-1")))
    return method(model, facts, part, options.rounds, options.apart)


if __name__ == "__main__":
    main()
