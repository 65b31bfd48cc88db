"""Verbs that edit: edit, mass, tune, export."""

import json
from typing import Any

import click
import pyarrow as pa

import fasttrace as ft
from fasttrace.editing.edit import EditPlan
from fasttrace.editing.hyperparameters import METHODS, TUNED, checked_overrides, setting_names
from fasttrace.editing.problems import PROBLEMS
from fasttrace.errors import UserError
from fasttrace.study import SOLVED
from fasttrace.tracing.corrupt import NOISES

from .deliver import NEW_FILE, NEW_FOLDER, check_apart, check_cache
from .options import Verb, bar, emit, floats, load, numbers, options, stages


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


def _check_early(
    store: str | None,
    memory: str,
    settings: dict[str, Any],
    overrides: dict[str, Any],
    export: str | None = None,
    delta: str | None = None,
) -> None:
    """Raises UserError for what can be known to be wrong before a model is loaded: settings, and places together."""
    from fasttrace.tracing.corrupt import check_sigma
    from fasttrace.tracing.sweep import parse_bytes

    checked_overrides(settings["method"], overrides)
    check_sigma(settings["sigma"])
    parse_bytes(memory)
    check_apart(("--store", store), ("--export", export), ("--delta", delta))
    if settings["method"] in SOLVED or settings["essence"]:
        check_cache()


def _write(result: Any, plan: EditPlan, store: str | None, export: str | None, delta: str | None) -> None:
    """An EditResult or MassResult to the store first: it takes all or nothing, and the same command goes on from it
    where a file could not be written."""
    if store is not None:
        target = ft.Store(store)
        target.add_facts([encoded.fact for encoded in plan.encoded])
        if plan.moments is not None:
            target.add(plan.moments)
        target.add(result)
    if export is not None:
        result.export(export)
        click.echo(f"the edited model is in {export}", err=True)
    if delta is not None:
        result.save_delta(delta)
        click.echo(f"the change alone is in {delta}", err=True)


def _stored(store: Any, plan: EditPlan, columns: str) -> pa.Table:
    """A plan's edits: its run may also have those that the same settings gave other facts and layers."""
    mine = [fact.fact.fact_id for fact in plan.encoded]
    sql = f"SELECT {columns} FROM edits WHERE run_id = ? AND list_contains(?, layer) AND list_contains(?, fact_id)"
    return store.query(sql, [plan.run["run_id"], list(plan.layers), mine])


def _to_edit(
    decoder: Any, model: str, loaded: list[ft.Fact], store: str | None, protocol: str, known: bool
) -> list[ft.Fact]:
    """The facts, or those of them that the model knows."""
    from fasttrace.workflow import known_into

    if not known:
        return loaded
    with bar("Checking facts", len(loaded)) as done:
        if store is not None:
            verdicts = known_into(ft.Store(store), decoder, loaded, protocol, done)
        else:
            verdicts = ft.check_known(decoder, loaded, protocol=protocol, progress=done).verdicts.to_pylist()
    kept = [fact for fact, verdict in zip(loaded, verdicts, strict=True) if verdict["known"]]
    if not kept:
        raise UserError(f"none of the facts is known to {model}, so none was edited")
    return kept


@click.command()
@options(
    "facts", "relation", "limit", "model", "dtype", "device", "store", "json", "protocol", "seed", "corpus", "tokens",
    "ridge",
)  # fmt: skip
@click.option("--method", type=click.Choice(METHODS), default="rome", show_default=True)
@click.option("--layers", callback=numbers, help="As 0,4,8; default: every fourth, the last and the model's own.")
@click.option("--essence", type=click.IntRange(0), default=5, show_default=True, help="Texts a fact is scored on.")
@_edit_options
@click.option("--fact-id", help="Edit only this fact.")
@click.option("--export", type=NEW_FOLDER, help="Write the model with the one edit in its weights to this folder.")
@click.option("--delta", type=NEW_FILE, help="Write the one edit alone to this safetensors file.")
def edit(
    facts: str | None, relation: str | None, limit: int | None, model: str, dtype: str, device: str,
    store: str | None, as_json: bool, protocol: str, seed: int, corpus: str | None, corpus_tokens: int,
    layers: list[int] | None, overrides: dict[str, Any], memory: str, fact_id: str | None, known: bool,
    export: str | None, delta: str | None, **settings: Any,
) -> None:  # fmt: skip
    """Edit facts at layers, each edit alone, and score it."""
    from fasttrace.editing import prepare_edit
    from fasttrace.workflow import edit_into

    if store is None and export is None and delta is None:
        raise UserError("nowhere to put the edits was named, --store FILE, --export FOLDER or --delta FILE was wanted")
    _check_early(store, memory, settings, overrides, export, delta)
    loaded = ft.load_facts(facts, relation=relation, limit=limit if fact_id is None else None)
    if fact_id is not None:
        loaded = [fact for fact in loaded if fact.fact_id == fact_id]
        if not loaded:
            raise UserError(f"no fact has the fact_id '{fact_id}'")
    decoder = load(model, dtype, device)
    loaded = _to_edit(decoder, model, loaded, store, protocol, known)
    chosen = decoder.edit_layers() if layers is None else layers
    written = export is not None or delta is not None
    if written and len(loaded) * len(set(chosen)) != 1:
        what = "export" if export is not None else "delta"
        raise UserError(f"{what}: {len(loaded)} facts at {len(set(chosen))} layers, one edit was wanted")
    with stages() as progress:
        plan = prepare_edit(
            decoder, loaded, layers=chosen, protocol=protocol, seed=seed, corpus=corpus, corpus_tokens=corpus_tokens,
            progress=progress, **settings, **overrides,
        )  # fmt: skip
    if written:
        [result] = plan.batches(memory=memory)
        if not result.edits:
            raise UserError(f"no edit was made: {result.scores['reason'][0].as_py()}")
        _write(result, plan, store, export, delta)
        rows = result.scores
    elif store is not None:
        with bar("Editing", len(loaded) * len(plan.layers)) as done:
            added = edit_into(ft.Store(store), plan, memory, done)
        if not as_json:
            click.echo(f"{added} edits added to {store} (run {plan.run['run_id']})", err=True)
        columns = "fact_id, layer, rewrite, paraphrase, neighborhood, essence, overall, p_before, p_after, reason"
        rows = _stored(ft.Store(store), plan, columns)
    emit(rows, as_json)


@click.command()
@options(
    "facts", "relation", "limit", "model", "dtype", "device", "store", "json", "protocol", "seed", "corpus", "tokens",
    "ridge",
)  # fmt: skip
@click.option("--method", type=click.Choice(METHODS), default="memit", show_default=True)
@click.option("--layer", type=click.IntRange(0), help="Where every edit is sent; default: the model's own.")
@click.option("--at-once", type=click.IntRange(1), help="Facts solved together; default: all (memit), 1 (others).")
@click.option("--score-every", type=click.IntRange(1), help="Groups between two scorings; default: ten scorings.")
@click.option("--essence", type=click.IntRange(0), default=0, show_default=True, help="Texts a fact is scored on.")
@_edit_options
@click.option("--export", type=NEW_FOLDER, help="Write the model with every edit in its weights to this folder.")
@click.option("--delta", type=NEW_FILE, help="Write the change alone to this safetensors file.")
def mass(
    facts: str | None, relation: str | None, limit: int | None, model: str, dtype: str, device: str,
    store: str | None, as_json: bool, protocol: str, corpus: str | None, overrides: dict[str, Any],
    memory: str, known: bool, export: str | None, delta: str | None, **settings: Any,
) -> None:  # fmt: skip
    """Edit many facts into one model, and score them all as they land.

    One model carries them, so it is computed whole; once finished it is read from the store, except for --export and
    --delta.
    """
    from fasttrace.editing import prepare_mass_edit
    from fasttrace.workflow import mass_into

    if store is None and export is None and delta is None:
        raise UserError("nowhere to put the edits was named, --store FILE, --export FOLDER or --delta FILE was wanted")
    _check_early(store, memory, settings, overrides, export, delta)
    loaded = ft.load_facts(facts, relation=relation, limit=limit)
    decoder = load(model, dtype, device)
    loaded = _to_edit(decoder, model, loaded, store, protocol, known)
    with stages() as progress:
        plan = prepare_mass_edit(
            decoder, loaded, protocol=protocol, corpus=corpus, progress=progress, **settings, **overrides
        )
    left_out = plan.plan.left_out
    if left_out:
        click.echo(
            f"{len(left_out)} of {len(loaded)} facts left out, one for: {next(iter(left_out.values()))}", err=True
        )
    with bar("Editing", len(plan.facts)) as done:
        if store is not None and export is None and delta is None:
            scores = mass_into(ft.Store(store), plan, memory, done)
        else:
            # What carries the edits is in no store, so it is made again.
            result = plan.compute(memory=memory, progress=done)
            scores = result.scores
    if export is not None or delta is not None:
        _write(result, plan.plan, store, export, delta)
    emit(_means_by_landed(scores), as_json)


def _means_by_landed(scores: pa.Table) -> pa.Table:
    """Mean scores of the facts that have landed, a row a scoring."""
    names = ("rewrite", "paraphrase", "neighborhood", "overall", "p_after")
    means = scores.group_by("landed").aggregate([(name, "mean") for name in names])
    return means.rename_columns([name.removesuffix("_mean") for name in means.column_names]).sort_by("landed")


@click.command()
@options(
    "facts", "relation", "limit", "model", "dtype", "device", "store", "json", "protocol", "seed", "corpus", "tokens",
    "ridge",
)  # fmt: skip
@click.option("--method", type=click.Choice(METHODS), default="rome", show_default=True)
@click.option("--layer", type=click.IntRange(0), help="Where to edit; default: the model's own.")
@click.option("--setting", type=click.Choice(setting_names()), help="What to tune; default: kl_factor, or epsilon.")
@click.option("--values", callback=floats, help="As 0.0625,0.9,1; default: the paper's.")
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

    _check_early(store, memory, settings, overrides)
    name = settings["setting"] or TUNED[settings["method"]][0]
    for value in settings["values"] or ():
        checked_overrides(settings["method"], {name: value})
    loaded = ft.load_facts(facts, relation=relation, limit=limit)
    decoder = load(model, dtype, device)
    loaded = _to_edit(decoder, model, loaded, store, protocol, known)
    rows = []
    for candidate in candidates(decoder, loaded, protocol=protocol, **settings, **overrides):
        plan = candidate.plan
        with bar(f"{candidate.setting} {candidate.value:g}", len(plan.encoded)) as done:
            if store is None:
                scores = pa.concat_tables([part.scores for part in plan.batches(memory=memory, progress=done)])
            else:
                target = ft.Store(store)
                edit_into(target, plan, memory, done)
                scores = _stored(target, plan, "*")
        rows.append(mean_scores(candidate, scores))
    best = choose(rows)
    emit(pa.Table.from_pylist([{**row, "chosen": row is best} for row in rows]), as_json)


@click.command()
@options("model", "dtype", "json")
@click.argument("delta", type=click.Path(exists=True, dir_okay=False))
@click.argument("folder", type=NEW_FOLDER)
def export(model: str, dtype: str, as_json: bool, delta: str, folder: str) -> None:
    """Write a model with the edit of a DELTA file in its weights to a new FOLDER, which plain transformers loads."""
    from fasttrace.editing.delta import check_delta, export_model, load_delta

    check_delta(delta)
    decoder = load(model, dtype, "cpu")
    path = export_model(decoder, load_delta(delta, decoder), folder)
    click.echo(json.dumps({"folder": str(path)}) if as_json else f"the edited model is in {path}")
