"""Verbs that run a whole study: study, demo."""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import fasttrace as ft
from fasttrace.errors import UserError
from fasttrace.memory import size_text
from fasttrace.packaged import full_name
from fasttrace.places import is_same
from fasttrace.settings.base import given_by, replaced
from fasttrace.settings.cluster import ClusterSettings, WorkerSettings
from fasttrace.show.words import count

from .deliver import NAME, check_apart, check_cache, check_store, saying_overwritten
from .help import command, completing, names_in, option
from .options import OF_MODEL, cluster_options, options
from .printed import emit, say_all_there, show_first
from .work import asks, crew_of, planned_workers, watching

if TYPE_CHECKING:
    from fasttrace.cluster.crew import Crew
    from fasttrace.show.watch import Watch
    from fasttrace.store import Store
    from fasttrace.studies.load import Study
    from fasttrace.study import ForWorkers, Runner, Stage


@command()
@options("json")
@click.argument(
    "file",
    required=False,
    shell_complete=completing(lambda: names_in("studies", ".toml"), files=".toml"),
)
@option("--list", "listed", is_flag=True, help="List the studies that come with fasttrace.")
@option("--show", is_flag=True, help="Print the study file, as a start for your own.")
@option(
    "--out", heading="Output", type=NAME, metavar="DIRECTORY", help="Folder to write to; by default the study's name."
)
@option(
    "--store", heading="Output", type=NAME, metavar="FILE", help="DuckDB file; by default study.duckdb in that folder."
)
@cluster_options
@option("--dry-run", heading="Output", is_flag=True, help="Print counts and expected time, and compute nothing.")
def study(
    as_json: bool,
    file: str | None,
    listed: bool,
    show: bool,
    out: str | None,
    store: str | None,
    dry_run: bool,
    cluster: ClusterSettings,
) -> None:
    """Run a study: trace facts, collect second moments, edit, analyse, report.

    FILE is a .toml file or the name of a shipped study. Without it, the shipped studies are listed. If a study was
    interrupted, the same command continues it.
    """
    from fasttrace.studies.load import load_study, shipped

    if listed or file is None:
        emit([{"study": name} for name in shipped()], as_json)
        return
    chosen = load_study(file)
    if show:
        from importlib.resources import files

        path = Path(file) if file.endswith(".toml") else files("fasttrace.studies") / f"{file}.toml"
        click.echo(path.read_text(encoding="utf-8"), nl=False)
        return
    stated = {name: value for name, value in given_by(cluster).items() if value is not None}
    chosen = replace(chosen, settings=replaced(chosen.settings, **stated))
    folder = Path(out or chosen.name)
    _run(chosen, folder, Path(store) if store else folder / "study.duckdb", dry_run, as_json)


def _run(chosen: "Study", out: Path, store_path: Path, dry_run: bool, as_json: bool) -> None:
    from fasttrace.analysis.tables import summary
    from fasttrace.study import check_results, has_run, write_results

    begun, store = time.perf_counter(), ft.Store(store_path)
    watch = watching(None if dry_run else store_path)
    if not dry_run:
        check_apart(("--out", out), ("--store", store_path), ("the report", out / "report.html"))
        if any(is_same(store_path.parent, out / folder) for folder in ("tables", "figures")):
            raise UserError(f"--store: expected a path apart from the study's tables and figures, got '{store_path}'")
        check_results(out)
        check_store(store_path, makes_folder=True)
        if chosen.uses_cache:
            check_cache()
    facts = chosen.loaded.facts  # raises before the model is loaded
    if (said := chosen.loaded.summary()) is not None:
        click.echo(said, err=True)
    asked = chosen.settings
    if dry_run:
        workers = planned_workers(asked)
        with crew_of(WorkerSettings(), *(getattr(asked, name) for name in OF_MODEL), watch=watch) as crew:
            runner = _runner(chosen, store, crew, watch)
            _print_plan(list(runner.plan()), as_json, None if workers is None else runner.for_workers(workers))
        return
    question = asks(
        *("study", asked.model, asked.dtype, asked.device, asked.tokenizer),
        corpora=[chosen.moments.corpus, *(one.corpus for one in chosen.edits)],
        facts=facts,
        candidates=chosen.candidates,
        settings=[asked, chosen.facts, chosen.moments, *chosen.traces, *chosen.edits],
    )
    found = question.answer()
    if found is not None and has_run(chosen, store, found):
        runs = found
        say_all_there(f"traces and edits of {count(len(runs['fact_ids']), 'fact')}", store_path, err=True)
        out.mkdir(parents=True, exist_ok=True)
    else:
        with crew_of(asked, *(getattr(asked, name) for name in OF_MODEL), watch=watch) as crew:
            runner = _runner(chosen, store, crew, watch)
            for folder in (out, store_path.parent):
                folder.mkdir(parents=True, exist_ok=True)
            runner.run()
        runs = runner.runs
        question.keep(runs)
    store.add_left_out(chosen.loaded.source, chosen.loaded.left_out)
    if asked.shard is not None:
        number, of = asked.shard
        click.echo(
            f"share {number} of {of} is in {store_path}; once all are merged, the same command without --shard writes "
            "the report",
            err=True,
        )
        return
    with saying_overwritten(out / "report.html", out / "tables", out / "figures"):
        written = write_results(store, out, asked.model, asked.protocol, asked.tracing_window)
    if as_json:
        click.echo(json.dumps({"store": str(store_path), "written": [str(path) for path in written]}))
        return
    click.echo(summary(store, window_size=asked.tracing_window), nl=False)
    click.echo(f"model:  {full_name(asked.model)}\nstore:  {store_path}")
    click.echo(f"report: {written[-1]} (and {len(written) - 1} tables and figures beside it)")
    n_facts = len(runs["fact_ids"])
    edits = n_facts * sum(len(layers) for _, layers in runs["edits"])
    click.echo(f"{count(n_facts, 'fact')}, {count(edits, 'edit')} in {time.perf_counter() - begun:.0f} s")


def _runner(chosen: "Study", store: "Store", crew: "Crew", watch: "Watch") -> "Runner":
    from fasttrace.study import Runner

    return Runner(chosen, store, crew, watch.bar, watch.stages, watch.say, show_first)


def _print_plan(plan: "list[Stage]", as_json: bool, workers: "ForWorkers | None") -> None:
    seconds = sum(stage.seconds for stage in plan)
    if as_json:
        stages = [asdict(stage) for stage in plan]
        whole = stages if workers is None else {"stages": stages, **workers.row(seconds)}
        click.echo(json.dumps(whole, indent=2))
        return
    rows: list[dict[str, Any]] = [
        {
            "what": stage.what,
            "of": f"{stage.total:,} {stage.unit}",
            "in the store": f"{stage.done:,}",
            "TFLOP": stage.flops / 1e12,
            "expected": _duration(stage.seconds),
        }
        for stage in plan
    ]
    emit(rows, False)
    click.echo(f"about {_duration(seconds)} at this machine's current rate")
    if workers is not None:
        row = workers.row(seconds)
        gpus = f", {row['gpu_hours']:.1f} GPU-hours" if row["gpu_hours"] else ""
        click.echo(
            f"about {_duration(seconds / workers.workers)} with {count(workers.workers, 'worker')}, each as fast as "
            f"this machine{gpus}; {size_text(workers.memory)} of memory each"
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


@command()
@options("model", "json")
@option(
    "--out",
    heading="Output",
    type=NAME,
    metavar="DIRECTORY",
    default="demo",
    show_default=True,
    help="Folder to write to.",
)
@option(
    "--known", "wanted", type=click.IntRange(1), default=24, show_default=True, help="Number of known facts to study."
)
def demo(model: str, as_json: bool, out: str, wanted: int) -> None:
    """Run the small study 'demo', from facts to report."""
    from fasttrace.studies.load import load_study

    chosen = load_study("demo")
    chosen = replace(
        chosen, settings=replaced(chosen.settings, model=model), facts=replaced(chosen.facts, known=wanted)
    )
    _run(chosen, Path(out), Path(out) / "study.duckdb", False, as_json)
