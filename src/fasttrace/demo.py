"""The whole study on the default model and built-in facts, small enough for two cores and a coffee."""

import itertools
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import click

import fasttrace as ft
from fasttrace.editing import prepare_edit, second_moments
from fasttrace.facts import Fact
from fasttrace.tracing import prepare_trace
from fasttrace.workflow import edit_into, known_into, trace_into

EDIT_LAYERS = 8
CORPUS_TOKENS = 24_576
CONTEXTS = 6  # of the default 20, with which the edits alone would take ten minutes on two cores
Bar = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]
Stages = Callable[[], AbstractContextManager[Callable[[str, int, int], None]]]


def interleaved(facts: list[Fact]) -> list[Fact]:
    """The facts in turn from each relation, so that a few of them cover many relations."""
    by_relation: dict[str | None, list[Fact]] = {}
    for fact in facts:
        by_relation.setdefault(fact.relation, []).append(fact)
    rounds = itertools.zip_longest(*by_relation.values())
    return [fact for turn in rounds for fact in turn if fact is not None]


def run_demo(source: str, out: Path, wanted: int, bar: Bar, stages: Stages, *, quiet: bool = False) -> None:
    """Know, trace, collect, edit, regress and report into the folder `out`; a second run goes on or repeats nothing.

    source: the model. wanted: how many known facts. bar, stages: progress bars. quiet: print no table.
    """
    from fasttrace.analysis.report import write_report
    from fasttrace.analysis.tables import summary

    say = (lambda text: None) if quiet else (lambda text: click.echo(text, err=True))
    begun = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    store = ft.Store(out / "study.duckdb")
    say(f"Loading {source}")
    model = ft.load_model(source)
    facts = interleaved(ft.load_facts())
    with bar("Known facts", None) as done:
        verdicts = known_into(store, model, facts, "paper", done, enough=wanted)
    known_ids = {verdict["fact_id"] for verdict in verdicts if verdict["known"]}
    known = [fact for fact in facts if fact.fact_id in known_ids][:wanted]
    say(f"    {len(known_ids)} of {len(verdicts)} facts looked at are known; studying {len(known)}")
    sweep = prepare_trace(model, known, windows=[5], samples=10, keep="all")
    say("    every token and layer, window 5, 10 noise samples")
    with bar("Tracing", len(known)) as done:
        trace_into(store, sweep, "512MB", done)
    layers = sorted({round(i * (model.n_layers - 1) / (EDIT_LAYERS - 1)) for i in range(EDIT_LAYERS)})
    with stages() as progress:
        moments = second_moments(model, tokens=CORPUS_TOKENS, progress=progress)
    edits = prepare_edit(model, known, layers=layers, moments=moments, contexts=CONTEXTS, essence=1)
    say(f"    ROME for error injection at layers {', '.join(map(str, layers))}, {CONTEXTS} sampled contexts")
    with bar("Editing", len(known) * len(layers)) as done:
        edit_into(store, edits, "1GB", done)
    report = write_report(store, out / "report.html")
    if not quiet:
        click.echo(summary(store), nl=False)
        click.echo(f"store:  {store.path}\nreport: {report}")
        click.echo(f"{len(known)} facts, {len(known) * len(layers)} edits in {time.perf_counter() - begun:.0f} s")
