"""The command line: verbs that parse, call and print. Tables go to stdout, progress and errors to stderr."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

import fasttrace as ft
from fasttrace.editing.hyperparameters import METHODS as EDIT_METHODS
from fasttrace.editing.hyperparameters import setting_names
from fasttrace.editing.problems import PROBLEMS
from fasttrace.errors import UserError
from fasttrace.models import DEFAULT_MODEL
from fasttrace.tracing.corrupt import NOISES
from fasttrace.tracing.plan import METHODS, MODULES, TOKENS
from fasttrace.tracing.sweep import DEFAULT_MEMORY, SCREEN, TARGETS

Verb = Callable[..., None]


class _Rate(ProgressColumn):
    """Things a second, or seconds a thing."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("–")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each")


@contextmanager
def _bar(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; yields a function to be called after n more are done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda n: progress.advance(task, n)


def _numbers(_: click.Context, option: click.Parameter, text: str | None) -> list[int] | None:
    """ "0,4,8" → [0, 4, 8]."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of whole numbers such as 5 or 10,5,1") from None


def _floats(_: click.Context, option: click.Parameter, text: str | None) -> list[float] | None:
    """ "0.0625,0.9" → [0.0625, 0.9]."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 0.0625,0.9") from None


def _options(*names: str) -> Callable[[Verb], Verb]:
    """The options that verbs share, by name, in the order given."""
    known = {
        "model": click.option(
            "--model", default=DEFAULT_MODEL, show_default=True, help="Short name, hub id, folder or .gguf file."
        ),
        "dtype": click.option(
            "--dtype",
            type=click.Choice(["float32", "tf32", "bfloat16", "float64"]),
            default="float32",
            show_default=True,
        ),
        "device": click.option(
            "--device", default="cpu", show_default=True, help="As torch names it, or auto: over GPUs, CPU and disk."
        ),
        "facts": click.option(
            "--facts",
            type=click.Path(),
            help="CounterFact, known_1000 or zsRE JSON, or own JSONL; default: the built-in facts.",
        ),
        "relation": click.option("--relation", help="Only facts of this relation."),
        "limit": click.option("--limit", type=click.IntRange(1), help="At most so many facts."),
        "store": click.option("--store", type=click.Path(dir_okay=False), help="DuckDB file for the results."),
        "json": click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        "protocol": click.option(
            "--protocol", type=click.Choice(["paper", "released"]), default="paper", show_default=True
        ),
        "seed": click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
        "memory": click.option(
            "--memory", default=DEFAULT_MEMORY, show_default=True, help="For activations, weights not counted."
        ),
        "score": click.option("--score", default="rewrite", show_default=True, help="Which edit score."),
        "corpus": click.option(
            "--corpus", type=click.Path(), help="Text file or folder of .txt; default: text the model samples."
        ),
        "tokens": click.option(
            "--corpus-tokens", type=click.IntRange(1), default=100_000, show_default=True, help="Tokens to read."
        ),
    }

    def add(verb: Verb) -> Verb:
        for name in reversed(names):
            verb = known[name](verb)
        return verb

    return add


def _model(model: str, dtype: str, device: str) -> Any:
    with Console(stderr=True).status(f"Loading {model}"):
        return ft.load_model(model, dtype=dtype, device=device)


def _emit(table: pa.Table, as_json: bool, title: str | None = None) -> None:
    from fasttrace.analysis.tables import render

    click.echo(render(table, "json" if as_json else "text", title=title), nl=False)


def cost_lines(row: dict[str, Any]) -> str:
    """What `trace --dry-run` prints: a `Cost` as a dict, with `seconds` and `gemm_peak`."""
    weights, moved, peak = (row[name] / 2**30 for name in ("weight_bytes", "activation_bytes", "peak_bytes"))
    rate, product = row["wave_flops"] / row["seconds"] / 1e9, row["gemm_peak"] / 1e9
    lines = (
        ("facts", f"{row['facts']}, should all be known"),
        ("cells", f"{row['cells']} of the grids, {row['computed']} computed"),
        ("waves", f"{row['waves']}, the largest of {row['rows']} rows"),
        ("work", f"{row['flops'] / 1e12:.3f} TFLOP at the least, {row['wave_flops'] / 1e12:.3f} in these waves"),
        ("memory traffic", f"{weights:.2f} GiB of weights, {moved:.2f} GiB of rows"),
        ("peak memory", f"{peak:.2f} GiB with the weights"),
        ("expected time", f"{row['seconds']:.1f} s at {rate:.0f} GFLOP/s, a block's rate now (product: {product:.0f})"),
    )
    return "".join(f"{name:<15}{text}\n" for name, text in lines)


def _store(path: str | None) -> Any:
    if path is None:
        raise UserError("no store was named, --store FILE was wanted")
    return ft.Store(path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(ft.__version__, prog_name="fasttrace")
def cli() -> None:
    """Where does a language model store a fact, and does that tell where to edit it?"""


@cli.command()
@_options("facts", "relation", "limit", "model", "dtype", "device", "protocol", "store", "json")
@click.option("--check", is_flag=True, help="Test which facts the model knows: first 36 greedy tokens, p(o_true).")
def facts(
    facts: str | None, relation: str | None, limit: int | None, model: str, dtype: str, device: str, protocol: str,
    store: str | None, as_json: bool, check: bool,
) -> None:  # fmt: skip
    """List, filter and test facts."""
    loaded = ft.load_facts(facts, relation=relation, limit=limit)
    if store is not None:
        ft.Store(store).add_facts(loaded)
    rows = [
        {
            "fact_id": fact.fact_id,
            "relation": fact.relation,
            "prompt": fact.text,
            "target_true": fact.target_true,
            "target_false": fact.target_false,
        }
        for fact in loaded
    ]
    if check:
        from fasttrace.workflow import known_into

        decoder = _model(model, dtype, device)
        with _bar("Checking facts", len(loaded)) as done:
            if store is None:
                verdicts = ft.check_known(decoder, loaded, protocol=protocol, progress=done).verdicts.to_pylist()
            else:
                verdicts = known_into(ft.Store(store), decoder, loaded, protocol, done)
        for row, verdict in zip(rows, verdicts, strict=True):
            row |= {name: verdict[name] for name in ("known", "p_true", "continuation", "reason")}
    _emit(pa.Table.from_pylist(rows), as_json)
    if check and not as_json:
        click.echo(f"{sum(bool(row['known']) for row in rows)} of {len(rows)} facts are known to {model}")


@cli.command()
@_options("facts", "relation", "limit", "model", "dtype", "device", "store", "json", "protocol", "seed", "memory")
@click.option("--windows", default="5", show_default=True, callback=_numbers, help="Window sizes, as 10,5,1.")
@click.option("--samples", type=click.IntRange(1), default=10, show_default=True, help="Noise samples.")
@click.option("--noise", type=click.Choice(["philox", "released"]), default="philox", show_default=True)
@click.option("--sigma", help="A number or 3sd; default: published for the model, else 3sd.")
@click.option(
    "--module", type=click.Choice(MODULES), default="mlp", show_default=True, help="Whose output is replaced."
)
@click.option(
    "--method",
    type=click.Choice([*METHODS, SCREEN]),
    default="denoise",
    show_default=True,
    help=f"Restore, corrupt or zero it; {SCREEN} estimates denoise from one forward and backward.",
)
@click.option("--verify-top", type=click.IntRange(0), help=f"With {SCREEN}: cells of a fact to compute exactly.")
@click.option("--tokens", type=click.Choice(TOKENS), default="all", show_default=True)
@click.option("--target", type=click.Choice(TARGETS), default="sequence", show_default=True, help="What is scored.")
@click.option("--keep", type=click.Choice(["known", "all"]), default="known", show_default=True)
@click.option("--keep-samples", is_flag=True, help="Also store every noise sample (trace_samples).")
@click.option("--dry-run", is_flag=True, help="Print FLOPs, memory and expected time, and compute nothing.")
def trace(
    facts: str | None, relation: str | None, limit: int | None, model: str, dtype: str, device: str,
    store: str | None, as_json: bool, protocol: str, seed: int, memory: str, dry_run: bool, **settings: Any,
) -> None:  # fmt: skip
    """Trace facts: the probability each restored window gives back."""
    from fasttrace.tracing import prepare_trace
    from fasttrace.tracing.cost import block_rate, gemm_peak
    from fasttrace.workflow import trace_into

    target = None if dry_run else _store(store)
    loaded = ft.load_facts(facts, relation=relation, limit=limit)
    decoder = _model(model, dtype, device)
    plan = prepare_trace(decoder, loaded, protocol=protocol, seed=seed, **settings)
    if target is None:
        cost = plan.cost(memory)
        row = asdict(cost) | {"seconds": cost.wave_flops / block_rate(decoder), "gemm_peak": gemm_peak(decoder)}
        click.echo(json.dumps(row, indent=2) if as_json else cost_lines(row), nl=as_json)
        return
    with _bar("Tracing", len(loaded)) as done:
        effort = trace_into(target, plan, memory, done)
    rows = target.query(
        "SELECT fact_id, prompt, target_true, p_clean, p_noised, kept, reason FROM traces WHERE run_id = ?",
        [plan.run["run_id"]],
    )
    _emit(rows, as_json)
    if not as_json:
        sigma = "" if plan.sigma is None else f", σ = {plan.sigma:.4f}"
        click.echo(f"{effort.facts} facts added to {target.path} (run {plan.run['run_id']}{sigma})")
        if effort.flops:
            rate, peak = effort.flops / effort.seconds, gemm_peak(decoder)
            click.echo(
                f"{effort.flops / 1e12:.2f} TFLOP in {effort.seconds:.1f} s: {rate / 1e9:.0f} GFLOP/s, "
                f"{rate / peak:.0%} of the {peak / 1e9:.0f} that this machine's product reaches"
            )


@cli.command()
@_options("model", "dtype", "device", "corpus", "tokens", "store", "json", "seed")
@click.option("--layers", callback=_numbers, help="As 0,4,8; default: all.")
def stats(
    model: str, dtype: str, device: str, corpus: str | None, corpus_tokens: int, store: str | None, as_json: bool,
    seed: int, layers: list[int] | None,
) -> None:  # fmt: skip
    """Collect the keys' second moments, every layer in one pass."""
    decoder = _model(model, dtype, device)
    with _stages() as progress:
        moments = ft.second_moments(decoder, corpus, tokens=corpus_tokens, layers=layers, seed=seed, progress=progress)
    if store is not None:
        ft.Store(store).add(moments)
    row = {
        "layers": len(moments.layers),
        "n_tokens": moments.n_tokens,
        "corpus": moments.corpus,
        "path": str(moments.path),
    }
    _emit(pa.Table.from_pylist([row]), as_json)


@contextmanager
def _stages() -> Iterator[Callable[[str, int, int], None]]:
    """A bar a stage, for work that reports (stage, done, total)."""
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeElapsedColumn(),
        TimeRemainingColumn(), console=Console(stderr=True),
    ) as progress:  # fmt: skip
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(f"Moments: {stage}, tokens", total=total)
            progress.update(tasks[stage], completed=done, total=total)

        yield report


def _edit_options(verb: Verb) -> Verb:
    """The options that every editing verb has; they arrive as `settings` for `prepare_edit`."""
    options = (
        click.option("--problem", type=click.Choice(list(PROBLEMS)), default="error-injection", show_default=True),
        click.option(
            "--window-size", type=click.IntRange(1), default=5, show_default=True,
            help="Of memit and ft-5, and the tracing window to compare with.",
        ),
        click.option("--contexts", type=click.IntRange(0), default=20, show_default=True, help="Sampled prefixes."),
        click.option("--sigma", help="Of a corrupted subject: a number or 3sd, as in trace."),
        click.option("--noise", type=click.Choice(NOISES), default="philox", show_default=True),
        click.option(
            "--noise-sample", type=click.IntRange(0), default=0, show_default=True, help="Which of its samples."
        ),
        click.option(
            "--set", "overrides", multiple=True, callback=_assignments, metavar="NAME=VALUE",
            help=f"A hyperparameter: {', '.join(setting_names())}.",
        ),
        click.option("--memory", default="1GB", show_default=True, help="For edits in flight, weights not counted."),
        click.option("--known", is_flag=True, help="Edit only facts the model knows."),
    )  # fmt: skip
    for option in reversed(options):
        verb = option(verb)
    return verb


def _assignments(_: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    """("steps=10", "lr=0.1") → {"steps": "10", "lr": "0.1"}."""
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in setting_names():
            raise click.BadParameter(f"{text!r} is not NAME=VALUE with a NAME among {', '.join(setting_names())}")
        values[name] = value
    return values


def _to_edit(
    decoder: Any, model: str, loaded: list[ft.Fact], store: str | None, protocol: str, known: bool
) -> list[ft.Fact]:
    """The facts, or those of them that the model knows."""
    from fasttrace.workflow import known_into

    if not known:
        return loaded
    with _bar("Checking facts", len(loaded)) as done:
        if store is not None:
            verdicts = known_into(ft.Store(store), decoder, loaded, protocol, done)
        else:
            verdicts = ft.check_known(decoder, loaded, protocol=protocol, progress=done).verdicts.to_pylist()
    kept = [fact for fact, verdict in zip(loaded, verdicts, strict=True) if verdict["known"]]
    if not kept:
        raise UserError(f"none of the facts is known to {model}, so none was edited")
    return kept


@cli.command()
@_options(
    "facts", "relation", "limit", "model", "dtype", "device", "store", "json", "protocol", "seed", "corpus", "tokens"
)
@click.option("--method", type=click.Choice(EDIT_METHODS), default="rome", show_default=True)
@click.option("--layers", callback=_numbers, help="As 0,4,8; default: every fourth, the last and the model's own.")
@click.option("--essence", type=click.IntRange(0), default=5, show_default=True, help="Texts a fact is scored on.")
@_edit_options
@click.option("--fact-id", help="Edit only this fact.")
@click.option("--export", type=click.Path(), help="Write the model with the one edit in its weights to this folder.")
@click.option("--delta", type=click.Path(dir_okay=False), help="Write the one edit alone to this safetensors file.")
def edit(
    facts: str | None, relation: str | None, limit: int | None, model: str, dtype: str, device: str,
    store: str | None, as_json: bool, protocol: str, seed: int, corpus: str | None, corpus_tokens: int,
    layers: list[int] | None, overrides: dict[str, Any], memory: str, fact_id: str | None, known: bool,
    export: str | None, delta: str | None, **settings: Any,
) -> None:  # fmt: skip
    """Edit facts at layers, each edit alone, and score it."""
    from fasttrace.editing import prepare_edit
    from fasttrace.editing.delta import check_delta_file, check_export_folder
    from fasttrace.workflow import edit_into

    if store is None and export is None and delta is None:
        raise UserError("nowhere to put the edits was named, --store FILE, --export FOLDER or --delta FILE was wanted")
    loaded = ft.load_facts(facts, relation=relation, limit=limit if fact_id is None else None)
    if fact_id is not None:
        loaded = [fact for fact in loaded if fact.fact_id == fact_id]
        if not loaded:
            raise UserError(f"no fact has the fact_id '{fact_id}'")
    if export is not None:
        check_export_folder(export)
    if delta is not None:
        check_delta_file(delta)
    decoder = _model(model, dtype, device)
    loaded = _to_edit(decoder, model, loaded, store, protocol, known)
    chosen = decoder.edit_layers() if layers is None else layers
    written = export is not None or delta is not None
    if written and len(loaded) * len(set(chosen)) != 1:
        what = "export" if export is not None else "delta"
        raise UserError(f"{what}: {len(loaded)} facts at {len(set(chosen))} layers, one edit was wanted")
    with _stages() as progress:
        plan = prepare_edit(
            decoder, loaded, layers=chosen, protocol=protocol, seed=seed, corpus=corpus, corpus_tokens=corpus_tokens,
            progress=progress, **settings, **overrides,
        )  # fmt: skip
    if written:
        [result] = plan.batches(memory=memory)
        if result.edits and export is not None:
            result.export(export)
            click.echo(f"the edited model is in {export}", err=True)
        if result.edits and delta is not None:
            result.save_delta(delta)
            click.echo(f"the edit alone is in {delta}", err=True)
        if not result.edits:
            raise UserError(f"no edit was made: {result.scores['reason'][0].as_py()}")
        if store is not None:
            target = ft.Store(store)
            target.add_facts(loaded)
            if plan.moments is not None:
                target.add(plan.moments)
            target.add(result)
        rows = result.scores
    elif store is not None:
        with _bar("Editing", len(loaded) * len(plan.layers)) as done:
            added = edit_into(ft.Store(store), plan, memory, done)
        if not as_json:
            click.echo(f"{added} edits added to {store} (run {plan.run['run_id']})", err=True)
        columns = "fact_id, layer, rewrite, paraphrase, neighborhood, essence, overall, p_before, p_after, reason"
        rows = ft.Store(store).query(f"SELECT {columns} FROM edits WHERE run_id = ?", [plan.run["run_id"]])
    _emit(rows, as_json)


@cli.command()
@_options(
    "facts", "relation", "limit", "model", "dtype", "device", "store", "json", "protocol", "seed", "corpus", "tokens"
)
@click.option("--method", type=click.Choice(EDIT_METHODS), default="memit", show_default=True)
@click.option("--layer", type=click.IntRange(0), help="Where every edit is sent; default: the model's own.")
@click.option("--at-once", type=click.IntRange(1), help="Facts solved together; default: all (memit), 1 (others).")
@click.option("--score-every", type=click.IntRange(1), help="Groups between two scorings; default: ten scorings.")
@click.option("--essence", type=click.IntRange(0), default=0, show_default=True, help="Texts a fact is scored on.")
@_edit_options
@click.option("--export", type=click.Path(), help="Write the model with every edit in its weights to this folder.")
@click.option("--delta", type=click.Path(dir_okay=False), help="Write the change alone to this safetensors file.")
def mass(
    facts: str | None, relation: str | None, limit: int | None, model: str, dtype: str, device: str,
    store: str | None, as_json: bool, protocol: str, corpus: str | None, overrides: dict[str, Any],
    memory: str, known: bool, export: str | None, delta: str | None, **settings: Any,
) -> None:  # fmt: skip
    """Edit many facts into one model, and score them all as they land."""
    from fasttrace.editing import prepare_mass_edit
    from fasttrace.editing.delta import check_delta_file, check_export_folder
    from fasttrace.workflow import mass_into

    if store is None and export is None and delta is None:
        raise UserError("nowhere to put the edits was named, --store FILE, --export FOLDER or --delta FILE was wanted")
    loaded = ft.load_facts(facts, relation=relation, limit=limit)
    if export is not None:
        check_export_folder(export)
    if delta is not None:
        check_delta_file(delta)
    decoder = _model(model, dtype, device)
    loaded = _to_edit(decoder, model, loaded, store, protocol, known)
    with _stages() as progress:
        plan = prepare_mass_edit(
            decoder, loaded, protocol=protocol, corpus=corpus, progress=progress, **settings, **overrides
        )
    with _bar("Editing", len(plan.facts)) as done:
        if store is None:
            result = plan.compute(memory=memory, progress=done)
        else:
            result = mass_into(ft.Store(store), plan, memory, done)
    if export is not None:
        result.export(export)
        click.echo(f"the edited model is in {export}", err=True)
    if delta is not None:
        result.save_delta(delta)
        click.echo(f"the change alone is in {delta}", err=True)
    _emit(_means_by_landed(result.scores), as_json)


def _means_by_landed(scores: pa.Table) -> pa.Table:
    """Mean scores of the facts that have landed, a row a scoring."""
    names = ("rewrite", "paraphrase", "neighborhood", "overall", "p_after")
    means = scores.group_by("landed").aggregate([(name, "mean") for name in names])
    return means.rename_columns([name.removesuffix("_mean") for name in means.column_names]).sort_by("landed")


@cli.command()
@_options(
    "facts", "relation", "limit", "model", "dtype", "device", "store", "json", "protocol", "seed", "corpus", "tokens"
)
@click.option("--method", type=click.Choice(EDIT_METHODS), default="rome", show_default=True)
@click.option("--layer", type=click.IntRange(0), help="Where to edit; default: the model's own.")
@click.option("--setting", type=click.Choice(setting_names()), help="What to tune; default: kl_factor, or epsilon.")
@click.option("--values", callback=_floats, help="As 0.0625,0.9,1; default: the paper's.")
@click.option("--essence", type=click.IntRange(0), default=0, show_default=True, help="Texts a fact is scored on.")
@_edit_options
def tune(
    facts: str | None, relation: str | None, limit: int | None, model: str, dtype: str, device: str,
    store: str | None, as_json: bool, protocol: str, overrides: dict[str, Any], memory: str, known: bool,
    **settings: Any,
) -> None:  # fmt: skip
    """Try values of a method's hyperparameter on the first 100 facts, and say which to take."""
    from fasttrace.editing.tune import candidates, choose, mean_scores
    from fasttrace.workflow import edit_into

    loaded = ft.load_facts(facts, relation=relation, limit=limit)
    decoder = _model(model, dtype, device)
    loaded = _to_edit(decoder, model, loaded, store, protocol, known)
    rows = []
    for candidate in candidates(decoder, loaded, protocol=protocol, **settings, **overrides):
        plan = candidate.plan
        with _bar(f"{candidate.setting} {candidate.value:g}", len(plan.encoded)) as done:
            if store is None:
                scores = pa.concat_tables([part.scores for part in plan.batches(memory=memory, progress=done)])
            else:
                target = ft.Store(store)
                edit_into(target, plan, memory, done)
                scores = target.query("SELECT * FROM edits WHERE run_id = ?", [plan.run["run_id"]])
        rows.append(mean_scores(candidate, scores))
    best = choose(rows)
    _emit(pa.Table.from_pylist([{**row, "chosen": row is best} for row in rows]), as_json)


@cli.command()
@_options("model", "dtype", "json")
@click.argument("delta", type=click.Path())
@click.argument("folder", type=click.Path())
def export(model: str, dtype: str, as_json: bool, delta: str, folder: str) -> None:
    """Write a model with the edit of a DELTA file in its weights to a new FOLDER, which plain transformers loads."""
    from fasttrace.editing.delta import check_export_folder, export_model, load_delta

    check_export_folder(folder)
    decoder = _model(model, dtype, "cpu")
    path = export_model(decoder, load_delta(delta, decoder), folder)
    click.echo(json.dumps({"folder": str(path)}) if as_json else f"the edited model is in {path}")


@cli.command()
@_options("store", "json")
@click.argument("query")
def sql(store: str | None, as_json: bool, query: str) -> None:
    """Run a query over the store, read-only. QUERY: SQL, or the name of a file that holds it."""
    path = Path(query)
    try:
        text = path.read_text(encoding="utf-8") if query.endswith(".sql") and path.is_file() else query
    except UnicodeDecodeError as error:
        raise UserError(f"query file '{query}' is not UTF-8 text") from error
    _emit(_store(store).query(text), as_json)


@cli.command()
@_options("store", "json", "score")
def tables(store: str | None, as_json: bool, score: str) -> None:
    """R² of an edit score by layer, tracing effect and both; mean scores by layer."""
    from fasttrace.analysis.regression import layer_means, regressions
    from fasttrace.analysis.tables import summary

    target = _store(store)
    if as_json:
        both = {
            "regressions": regressions(target, score).to_pylist(),
            "layer_means": layer_means(target, score).to_pylist(),
        }
        click.echo(json.dumps(both, default=str, ensure_ascii=False, indent=2))
    else:
        click.echo(summary(target, score), nl=False)


@cli.command()
@_options("store", "json")
@click.option("--out", type=click.Path(dir_okay=False), default="report.html", show_default=True)
def report(store: str | None, as_json: bool, out: str) -> None:
    """Write everything the store holds as one self-contained HTML file."""
    from fasttrace.analysis.report import write_report

    path = write_report(_store(store), out)
    click.echo(json.dumps({"report": str(path)}) if as_json else f"report: {path}")


@cli.command()
@_options("json")
def env(as_json: bool) -> None:
    """Versions, devices and what was compiled: for a bug report."""
    import torch

    from fasttrace.ops.native import problem

    names = ("fasttrace", "torch", "transformers", "triton", "duckdb", "numpy", "pyarrow", "statsmodels", "accelerate")
    rows = [{"what": name, "value": _version(name)} for name in names]
    rows.append({"what": "python", "value": sys.version.split()[0]})
    rows.append({"what": "extension", "value": problem() or "loaded"})
    capability = torch.backends.cpu.get_cpu_capability()
    rows.append({"what": "cpu", "value": f"{torch.get_num_threads()} threads, {capability}"})
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    rows.append({"what": "cuda", "value": cuda})
    _emit(pa.Table.from_pylist(rows), as_json)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


@cli.command()
@_options("model", "json")
@click.option("--out", type=click.Path(file_okay=False), default="demo", show_default=True, help="Folder to write to.")
@click.option("--known", "wanted", type=click.IntRange(1), default=24, show_default=True, help="Known facts to study.")
def demo(model: str, as_json: bool, out: str, wanted: int) -> None:
    """The whole study, small: know, trace, collect, edit, regress, report."""
    from fasttrace.demo import run_demo

    run_demo(model, Path(out), wanted, _bar, _stages, quiet=as_json)
    if as_json:
        click.echo(json.dumps({"store": str(Path(out) / "study.duckdb"), "report": str(Path(out) / "report.html")}))


def main() -> None:
    """Entry point: a user's error is one sentence and exit code 2; Ctrl-C keeps what was committed."""
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"fasttrace: {error.format_message()}", err=True)
        sys.exit(2)
    except OSError as error:
        click.echo(f"fasttrace: '{error.filename}' could not be read or written: {error.strerror}", err=True)
        sys.exit(2)
    except click.exceptions.Abort:
        _interrupted()
    except KeyboardInterrupt:
        _interrupted()
    except UserError as error:
        click.echo(f"fasttrace: {error}", err=True)
        sys.exit(2)


def _interrupted() -> None:
    click.echo("fasttrace: stopped; what was finished is in the store, the same command goes on from there", err=True)
    sys.exit(130)
