"""Verbs before any edit: trace, stats."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

import fasttrace as ft
from fasttrace.errors import UserError
from fasttrace.settings.base import replaced
from fasttrace.settings.cluster import ClusterSettings
from fasttrace.settings.moments import MomentSettings
from fasttrace.settings.trace import TraceSettings
from fasttrace.show.words import count

from .deliver import FOLDER, NAME, check_apart, check_cache, saying_overwritten
from .help import command, option
from .options import OF_MODEL, cluster_options, open_store, options, setting_options
from .printed import emit, print_heatmaps, say_all_there, show_first
from .work import Work, crew_of, planned_workers, watching, work_options

if TYPE_CHECKING:
    import pyarrow as pa

    from fasttrace.facts import Fact
    from fasttrace.show.watch import Watch


@command()
@work_options
@options("pairs")
@setting_options(TraceSettings)
@cluster_options
@option("--dry-run", heading="Output", is_flag=True, help="Print FLOPs, memory and expected time, and compute nothing.")
def trace(work: Work, pairs: int | None, dry_run: bool, cluster: ClusterSettings, **given: Any) -> None:
    """Trace facts: measure what restoring each window brings back.

    With --prompt, one fact is traced, and its heatmap is printed. It needs no store; without one, --json prints the
    cells.
    """
    from fasttrace.recall import NONE
    from fasttrace.tracing import prepare_trace
    from fasttrace.tracing.cost import gemm_peak
    from fasttrace.workflow import has_traced, trace_into

    settings = TraceSettings(**given)
    if pairs is not None and settings.corruption != "counterfactual":
        raise UserError(f"--pairs: expected --corruption counterfactual, got {settings.corruption}")
    if pairs is not None and work.stated.prompt is not None:
        raise UserError("--pairs: expected facts of a file, whose subjects are paired, got --prompt, which is one fact")
    one = work.stated.prompt is not None and not dry_run
    if one:
        work.check_shard(cluster)
    target = None if dry_run or (one and work.store is None) else open_store(work.store)
    watch = watching(None if dry_run else work.store)
    loaded = work.load_facts()
    if pairs is not None:
        loaded = work.pair_facts(loaded, pairs).filled(loaded)
    asked = NONE if target is None else work.asks("trace", facts=loaded, settings=settings)
    found = asked.answer()
    if target is not None and found and has_traced(target, loaded, **found):
        work.keep_left_out()
        if one and not work.as_json:
            _draw_stored(target, found["run_id"], loaded)
        emit(_traced(target, found["run_id"], settings), work.as_json)
        if not work.as_json:
            say_all_there(count(len(found["contrasts"]), "fact"), target.path, found["run_id"])
        return
    driven = settings.engine == "wavefront"
    if one and target is None:
        _trace_one(work, loaded, settings, cluster, watch)
        return
    if target is None:
        workers = planned_workers(cluster)
        decoder = work.load_model(driven=driven)
        plan = prepare_trace(decoder, loaded, settings=settings)
        cost = plan.cost()
        row = asdict(cost) | {"seconds": cost.wave_flops / plan.rate(), "gemm_peak": gemm_peak(decoder)}
        if workers is not None:
            row |= {"workers": workers, "seconds_with_workers": row["seconds"] / workers}
        click.echo(json.dumps(row, indent=2) if work.as_json else cost_lines(row, settings.engine), nl=work.as_json)
        return
    with work.crew(cluster, watch, driven=driven) as crew:
        plan = crew.ask(prepare_trace, loaded, settings=settings)
        asked.keep({"run_id": plan.run["run_id"], "contrasts": plan.contrasts.to_pylist()})
        only = crew.share(plan, cluster.shard)
        with watch.bar("Tracing", len(loaded) if only is None else len(only)) as done:
            effort = trace_into(target, plan, done, None if one else show_first, crew=crew, only=only)
        peak = crew.ask(gemm_peak) if effort.flops else 0.0
    work.keep_left_out()
    if one and not work.as_json:
        _draw_stored(target, plan.run["run_id"], loaded)
    emit(_traced(target, plan.run["run_id"], settings), work.as_json)
    if not work.as_json:
        sigma = "" if plan.sigma is None else f", σ = {plan.sigma:.4f}"
        click.echo(f"{count(effort.facts, 'fact')} added to {target.path} (run {plan.run['run_id']}{sigma})")
        if effort.flops:
            rate = effort.flops / effort.seconds
            how = "" if settings.engine == "wavefront" else ", with hooks on transformers' forward"
            click.echo(
                f"{effort.flops / 1e12:.2f} TFLOP in {effort.seconds:.1f} s: {rate / 1e9:.0f} GFLOP/s, "
                f"{rate / peak:.0%} of the {peak / 1e9:.0f} that this machine's matrix product reaches{how}"
            )


def _trace_one(
    work: Work, loaded: "list[Fact]", settings: TraceSettings, cluster: ClusterSettings, watch: "Watch"
) -> None:
    """Trace the fact of --prompt without a store, and print its heatmaps or, with --json, its cells."""
    from fasttrace.tracing import prepare_trace

    with work.crew(cluster, watch, driven=settings.engine == "wavefront") as crew:
        plan = crew.ask(prepare_trace, loaded, settings=settings)
        with watch.bar("Tracing", len(loaded)) as done:
            result = plan.joined(list(crew.batches(plan, progress=done)))
    if not len(result.cells):
        [why] = result.facts["reason"].to_pylist()
        raise UserError(f"trace: the fact is not traced: {why}; --keep all traces also what the model does not know")
    heats = [result.heatmap(window=window, what="trace") for window in plan.settings.windows]
    if work.as_json:
        emit(result.cells, True)
    else:
        print_heatmaps(heats)


def _draw_stored(store: Any, run_id: str, loaded: "list[Fact]") -> None:
    """Print the heatmaps of the fact of --prompt from a store, one a window size."""
    import pyarrow.compute as pc

    from fasttrace.analysis.draw import stored_heatmap
    from fasttrace.analysis.relation import relation

    [fact] = loaded
    rows = [row for row in relation(store, "fact_traces").to_pylist() if row["fact_id"] == fact.fact_id]
    cells = relation(store, "fact_cells", {"fact_ids": [fact.fact_id]})
    heats = []
    for row in sorted(rows, key=lambda row: -(row["window_size"] or 0)):
        if row["trace_run_id"] == run_id and row["window_size"] is not None:
            mine = pc.and_(pc.equal(cells["run_id"], run_id), pc.equal(cells["window_size"], row["window_size"]))
            heats.append(stored_heatmap(row, cells.filter(mine)))
    if heats:
        print_heatmaps(heats)
        click.echo()


# Metric → what `trace` prints of a fact besides its probabilities.
_PRINTED = {
    "log-probability": "logprob_clean, logprob_noised, ",
    "logit-difference": "target_false, logit_diff_clean, logit_diff_noised, ",
    "kl": "kl_noised, ",
}


def _traced(store: Any, run_id: str, settings: TraceSettings) -> "pa.Table":
    more = _PRINTED.get(settings.metric, "")
    sql = f"SELECT fact_id, prompt, target_true, p_clean, p_noised, {more}kept, reason FROM traces WHERE run_id = ?"
    return store.query(sql, [run_id])


@command()
@options(*OF_MODEL, "store", "json")
@setting_options(MomentSettings)
@cluster_options
@option(
    "--import",
    "source",
    type=NAME,
    metavar="PATH",
    help="Read second moments from an .npz file of the released code, or a folder of them; as --corpus, but no text.",
)
@option(
    "--export", type=FOLDER, help="Write an .npz file of each layer, as the released code reads it, under this folder."
)
def stats(
    model: str,
    dtype: str,
    device: str,
    tokenizer: str | None,
    trust_remote_code: bool,
    store: str | None,
    as_json: bool,
    source: str | None,
    export: str | None,
    cluster: ClusterSettings,
    **given: Any,
) -> None:
    """Collect the second moments of the keys, for all layers in one pass, or import them from files.

    What is collected is kept in the cache folder, where edits find it.
    """
    from fasttrace.editing.moments_npz import check_key_sums
    from fasttrace.workflow import collect_moments

    settings = MomentSettings(**given)
    check_apart(("--store", store), ("--export", export))
    if source is not None:
        if settings.corpus is not None:
            raise UserError(f"expected --corpus or --import, got '{settings.corpus}' and '{source}'")
        check_key_sums(source)
        settings = replaced(settings, corpus=source)
    if source is not None and cluster.shard is not None:
        raise UserError("--shard: expected text to collect from, got --import")
    if export is not None and cluster.workers is not None:
        raise UserError("--export: expected one process, which writes what workers have collected, got --workers")
    check_cache()
    watch = watching(store)
    of_model = (model, dtype, device, tokenizer, trust_remote_code)
    with crew_of(cluster, *of_model, watch=watch) as crew:
        with watch.stages() as progress:
            moments = collect_moments(crew, settings, progress, cluster.shard)
        if store is not None:
            ft.Store(store).add(moments)
        if export is not None:
            crew.ask(_export, moments, export)
    row = {
        "layers": len(moments.layers),
        "n_tokens": moments.n_tokens,
        "corpus": moments.corpus,
        "path": str(moments.path),
    }
    emit([row], as_json)


def _export(decoder: Any, moments: Any, folder: str) -> None:
    """Write the released code's files, and say where they are."""
    with saying_overwritten(moments.export_folder(folder, decoder)):
        paths = moments.export(folder, decoder)
    click.echo(f"{count(len(paths), 'file is', 'files are')} in {paths[0].parent}", err=True)


def cost_lines(row: dict[str, Any], engine: str) -> str:
    """The text that `trace --dry-run` prints. row: a `Cost` as a dict, with `seconds` and `gemm_peak` added."""
    waves, of = ("waves", "a block's") if engine == "wavefront" else ("forwards", "a whole forward's")
    weights, moved, peak = (row[name] / 2**30 for name in ("weight_bytes", "activation_bytes", "peak_bytes"))
    rate, product = row["wave_flops"] / row["seconds"] / 1e9, row["gemm_peak"] / 1e9
    lines: tuple[tuple[str, str], ...] = (
        ("facts", f"{row['facts']}, if all are known"),
        ("cells", f"{row['cells']} in the grids, {row['computed']} to compute"),
        (waves, f"{row['waves']}, the largest with {row['rows']} rows"),
        ("work", f"at least {row['flops'] / 1e12:.3f} TFLOP, {row['wave_flops'] / 1e12:.3f} in these {waves}"),
        ("memory traffic", f"{weights:.2f} GiB of weights, {moved:.2f} GiB of rows"),
        ("peak memory", f"{peak:.2f} GiB with the weights"),
        (
            "expected time",
            f"{row['seconds']:.1f} s at {rate:.0f} GFLOP/s, {of} current rate (matrix product: {product:.0f})",
        ),
    )
    if (workers := row.get("workers")) is not None:
        text = f"{row['seconds_with_workers']:.1f} s, each as fast as this machine"
        lines += ((f"{workers} worker{'s' if workers > 1 else ''}", text),)
    return "".join(f"{name:<15}{text}\n" for name, text in lines)
