"""Verbs that edit: edit, mass, tune, export."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

import fasttrace as ft
from fasttrace.errors import UserError, did_you_mean, question
from fasttrace.protocols import Protocol
from fasttrace.settings.cluster import ClusterSettings, WorkerSettings
from fasttrace.settings.edit import EditingSettings, EditSettings
from fasttrace.settings.export import ExportSettings
from fasttrace.settings.mass import SAMPLED, MassSettings, TuneSettings
from fasttrace.settings.methods import SOLVED, hyperparameters, method_settings
from fasttrace.show.words import count

from .deliver import NEW_FILE, NEW_FOLDER, check_apart, check_cache, saying_overwritten
from .help import command, option
from .options import Verb, cluster_options, options, setting_options
from .printed import emit, say_all_there
from .work import Work, known_verdicts, load, watching, work_options

if TYPE_CHECKING:
    import pyarrow as pa

    from fasttrace.cluster.crew import Crew
    from fasttrace.editing.plan import EditPlan
    from fasttrace.facts import Fact
    from fasttrace.show.watch import Watch

KIND_COLUMNS = ["kind", "expect", "prompts", "score", "p_before", "p_after", "match_before", "match_after"]
GENERATED_COLUMNS = ["exact_after", "prefix_after"]
EDIT_COLUMNS = "fact_id, layer, rewrite, paraphrase, neighborhood, essence, overall, p_before, p_after, reason"
Kind = TypeVar("Kind", bound=EditingSettings)


def _editing_options(kind: type[EditingSettings]) -> Callable[[Verb], Verb]:
    """The options of every editing verb, and those of its settings."""

    def add(verb: Verb) -> Verb:
        verb = option("--known", heading="Facts", is_flag=True, help="Edit only facts that the model knows.")(verb)
        verb = option(
            "--set",
            "own",
            heading="Edit",
            multiple=True,
            callback=_assignments,
            metavar="NAME=VALUE",
            help=f"Set a hyperparameter of the method; repeatable. NAME is one of {', '.join(hyperparameters())}.",
        )(verb)
        verb = setting_options(kind, without=["hyperparameters"])(verb)
        return work_options(verb)

    return add


def _assignments(_: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    """("steps=10", "lr=0.1") → {"steps": "10", "lr": "0.1"}."""
    values: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if equals and name not in hyperparameters() and (asked := question(name, hyperparameters())):
            raise UserError(f"--set: no hyperparameter has the name '{name}'; {asked}")
        if not equals or name not in hyperparameters():
            raise UserError(
                f"--set: expected NAME=VALUE with a NAME among {', '.join(hyperparameters())}, got {text!r}"
            )
        if name in values:
            raise UserError(f"--set: expected one value of {name}, got {values[name]!r} and {value!r}")
        values[name] = value
    return values


def _settings(kind: type[Kind], given: dict[str, Any], own: dict[str, str]) -> Kind:
    """The settings of a verb. own: {name: text} of the method's hyperparameters."""
    return kind(**given, hyperparameters=method_settings(given["method"], own) if own else None)


def _check_places(
    asked: EditingSettings, store: str | None, export: str | None = None, delta: str | None = None
) -> None:
    """Raise UserError where two paths are the same or in a folder to be exported, which must be new, or where the cache
    folder is needed and cannot be used."""
    check_apart(("--store", store), ("--export", export), ("--delta", delta))
    for name, place in (("--store", store), ("--delta", delta)):
        if place is not None and export is not None and Path(export).resolve() in Path(place).resolve().parents:
            raise UserError(f"{name}: expected a path outside the folder of --export, got '{place}'")
    if asked.method in SOLVED or asked.essence or getattr(asked, "held_out", None) == SAMPLED:
        check_cache()


def _projections(asked: EditingSettings) -> str | None:
    """The file of null-space projections that the settings name."""
    return getattr(asked.hyperparameters, "projections", None)


def _check_somewhere(work: Work, *places: str | None) -> None:
    """Raise UserError where edits would be kept nowhere. One that --prompt states may be just printed."""
    if not any((work.store, *places)) and work.stated.prompt is None:
        raise UserError("expected --store FILE, --export FOLDER or --delta FILE for the edits, got none")


def _write(result: Any, plan: "EditPlan", store: str | None, export: str | None, delta: str | None) -> None:
    """Write an EditResult or MassResult to the store, then to the files. The store comes first, because its write is
    atomic and can be repeated where a file could not be written."""
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
        with saying_overwritten(delta):
            result.save_delta(delta)
        click.echo(f"the change of the weights is in {delta}", err=True)


def _say_reasons(scores: "pa.Table") -> None:
    """Say on stderr how many edits have a reason, such as an optimisation that diverged."""
    reasons = [reason for reason in scores["reason"].to_pylist() if reason is not None]
    if reasons:
        click.echo(f"{len(reasons)} of {len(scores)} edits have a reason, the first: {reasons[0]}", err=True)


def _say_left_out(reasons: Sequence[str], loaded: "list[Fact]") -> None:
    """Say on stderr how many facts are not edited, and why the first is not."""
    if reasons:
        click.echo(f"{len(reasons)} of {len(loaded)} facts left out, the first: {reasons[0]}", err=True)


def _named(run_id: str, plan: "EditPlan") -> dict[str, Any]:
    """The edits of a plan by the names that they have in a store."""
    return {"run_id": run_id, "fact_ids": [fact.fact_id for fact in plan.encoded], "layers": list(plan.layers)}


def _stored(store: Any, edits: dict[str, Any], columns: str) -> "pa.Table":
    """Stored edits, as `_named` names them. Their run may also have edits of other facts and layers."""
    sql = f"SELECT {columns} FROM edits WHERE run_id = ? AND list_contains(?, layer) AND list_contains(?, fact_id)"
    return store.query(sql, [edits["run_id"], edits["layers"], edits["fact_ids"]])


def _emit_kinds(work: Work, run_id: str, asked: EditingSettings) -> None:
    """Print a stored run's mean scores by kind of prompt, as text, where prompts were continued or where facts have
    probes of more kinds than the paper's scores have columns for."""
    if work.store is None or work.as_json:
        return
    if not asked.generate and not any(fact.probes for fact in work.load_facts()):
        return
    import pyarrow.compute as pc

    from fasttrace.analysis.relation import relation

    if before := ft.Store(work.store).edits_without_probes(run_id):
        stored = count(before, "edit of this run was", "edits of this run were")
        click.echo(f"{stored} stored before their facts had probes: use another store", err=True)
    kinds = relation(ft.Store(work.store), "scores_by_kind")
    mine = kinds.filter(pc.equal(kinds["edit_run_id"], run_id))
    generated = [] if mine["exact_after"].null_count == len(mine) else GENERATED_COLUMNS
    counted = [] if mine["n_edits"].null_count else ["n_edits"]
    columns = ["layer", *counted, *KIND_COLUMNS, *generated]
    click.echo()
    emit(mine.select(columns), False, title="By kind of prompt, over the edits of this run")


def _known(work: Work, watch: "Watch", crew: "Crew", loaded: "list[Fact]", protocol: Protocol) -> "list[Fact]":
    """The facts that the model knows. Raises UserError where there are none."""
    verdicts = known_verdicts(work, watch, crew, loaded, protocol, WorkerSettings())
    kept = [fact for fact, verdict in zip(loaded, verdicts, strict=True) if verdict["known"]]
    if not kept:
        raise UserError(f"none of the facts is known to {work.model}, so none was edited")
    return kept


@command()
@_editing_options(EditSettings)
@cluster_options
@option("--fact-id", heading="Facts", help="Edit only this fact.")
@option(
    "--export", heading="Output", type=NEW_FOLDER, help="Write the model with the edit in its weights to this folder."
)
@option(
    "--delta", heading="Output", type=NEW_FILE, help="Write only the change of the weights to this safetensors file."
)
def edit(
    work: Work,
    own: dict[str, str],
    known: bool,
    fact_id: str | None,
    export: str | None,
    delta: str | None,
    cluster: ClusterSettings,
    **given: Any,
) -> None:
    """Edit each fact at each layer, separately, and score every edit.

    --export and --delta need one fact at one layer. With --prompt, one fact is edited, and no file of facts is needed.
    """
    from fasttrace.editing.edit import edited_layers, plan_edit
    from fasttrace.recall import NONE
    from fasttrace.workflow import edit_into, has_edited

    asked = _settings(EditSettings, given, own)
    _check_somewhere(work, export, delta)
    _check_places(asked, work.store, export, delta)
    work.check_shard(cluster)
    watch = watching(work.store)
    if fact_id is not None and work.reading.limit is not None:
        raise UserError("expected --fact-id or --limit, got both")
    loaded = work.load_facts()
    if fact_id is not None:
        every, loaded = loaded, [fact for fact in loaded if fact.fact_id == fact_id]
        if not loaded:
            hint = did_you_mean(fact_id, [fact.fact_id for fact in every])
            raise UserError(f"no fact has the fact_id '{fact_id}'{hint}")
    written = export is not None or delta is not None
    question = NONE
    if not written:
        texts = [asked.corpus, _projections(asked)]
        question = work.asks("edit", corpora=texts, facts=loaded, settings=asked, known=known)
    runs = question.answer()
    if runs and work.store is not None and has_edited(ft.Store(work.store), loaded, **runs):
        _ask_again(work.store, runs["run_id"], asked)
        work.keep_left_out()
        say_all_there(count(len(runs["fact_ids"]) * len(runs["layers"]), "edit"), work.store, runs["run_id"], err=True)
        rows = _stored(ft.Store(work.store), runs, EDIT_COLUMNS)
        _say_reasons(rows)
        emit(rows, work.as_json)
        _emit_kinds(work, runs["run_id"], asked)
        return
    if written and (cluster.workers is not None or cluster.shard is not None):
        raise UserError("--export, --delta: expected one fact, which one process edits, got --workers or --shard")
    with work.crew(cluster, watch) as crew:
        if known:
            loaded = _known(work, watch, crew, loaded, asked.protocol)
        chosen = crew.ask(edited_layers, asked)
        if written and len(loaded) * len(chosen) != 1:
            what = "export" if export is not None else "delta"
            found = f"{count(len(loaded), 'fact')} at {count(len(chosen), 'layer')}"
            raise UserError(f"--{what}: expected one fact at one layer, got {found}")
        with watch.stages() as progress:
            plan = plan_edit(crew, loaded, asked, progress=progress)
        question.keep(_named(plan.run["run_id"], plan))
        if written:
            [result] = plan.batches()
            if not result.edits:
                raise UserError(f"no edit was made: {result.scores['reason'][0].as_py()}")
            _write(result, plan, work.store, export, delta)
            rows = result.scores
        elif work.store is not None:
            only = crew.share(plan, cluster.shard)
            total = len(loaded) * len(plan.layers) if only is None else len(only)
            with watch.bar("Editing", total, "edits") as done:
                added = edit_into(ft.Store(work.store), plan, done, crew=crew, only=only)
            if not work.as_json:
                click.echo(f"{count(added, 'edit')} added to {work.store} (run {plan.run['run_id']})", err=True)
            rows = _stored(ft.Store(work.store), _named(plan.run["run_id"], plan), EDIT_COLUMNS)
        else:
            with watch.bar("Editing", len(plan.layers), "edits") as done:
                parts = list(crew.batches(plan, progress=done))
            rows = plan.joined(parts, whole=False).scores.select(EDIT_COLUMNS.split(", "))
    work.keep_left_out()
    _say_reasons(rows)
    emit(rows, work.as_json)
    _emit_kinds(work, plan.run["run_id"], asked)


@command()
@_editing_options(MassSettings)
@option(
    "--export", heading="Output", type=NEW_FOLDER, help="Write the model with every edit in its weights to this folder."
)
@option(
    "--delta", heading="Output", type=NEW_FILE, help="Write only the change of the weights to this safetensors file."
)
def mass(
    work: Work,
    own: dict[str, str],
    known: bool,
    export: str | None,
    delta: str | None,
    **given: Any,
) -> None:
    """Edit many facts into one model, and score all of them as the number of edits grows.

    An interrupted mass edit goes on from its last checkpoint, which is written every 20 seconds. A finished one is read
    from the store, unless --export or --delta is given. What an edit breaks is measured at each scoring: the norms of
    the weights, and with --held-out, --fluency and --lm-eval more.
    """
    from fasttrace.cluster.crew import Alone
    from fasttrace.editing import prepare_mass_edit
    from fasttrace.editing.harness import task_files
    from fasttrace.recall import NONE
    from fasttrace.workflow import mass_into, mass_measured

    asked = _settings(MassSettings, given, own)
    _check_somewhere(work, export, delta)
    _check_places(asked, work.store, export, delta)
    watch = watching(work.store)
    loaded = work.load_facts()
    # The edited weights are not stored, so they are computed again where they are to be written.
    target = ft.Store(work.store) if work.store is not None and export is None and delta is None else None
    question = NONE
    if target is not None:
        texts = [None if asked.held_out == SAMPLED else asked.held_out, *task_files(asked.lm_eval_tasks)]
        texts += [asked.corpus, asked.continue_from, _projections(asked)]
        question = work.asks("mass", corpora=texts, facts=loaded, settings=asked, known=known)
    if (found := question.answer()) and _mass_is_there(work, target, loaded, found, asked):
        return
    decoder = work.load_model()
    if known:
        loaded = _known(work, watch, Alone(decoder), loaded, asked.protocol)
    with watch.stages() as progress:
        plan = prepare_mass_edit(decoder, loaded, settings=asked, progress=progress)
    if (export is not None or delta is not None) and len(plan.models) > 1:
        what = "export" if export is not None else "delta"
        raise UserError(f"--{what}: expected the edits of one model, got those of {len(plan.models)} cases")
    left_out = list(plan.plan.left_out.values())
    ids = [fact.fact_id for fact in plan.plan.encoded]
    found = {"run_id": plan.run["run_id"], "fact_ids": ids, "left_out": left_out}
    question.keep(found)
    if _mass_is_there(work, target, loaded, found, asked):  # asked for with other words, such as another path of a text
        return
    _say_left_out(left_out, loaded)
    with watch.bar("Editing", len(plan.facts)) as done:
        if target is not None:
            scores = mass_into(target, plan, done)
            measured = mass_measured(target, plan.run["run_id"])
        else:
            result = plan.compute(progress=done)
            scores, measured = result.scores, (result.measures, result.norms)
    if export is not None or delta is not None:
        _write(result, plan.plan, work.store, export, delta)
        plan.checkpoint.unlink(missing_ok=True)
    work.keep_left_out()
    _say_reasons(scores)
    emit(_means_by_n_edits(scores, *measured), work.as_json)
    _emit_kinds(work, plan.run["run_id"], asked)


def _mass_is_there(
    work: Work, target: "ft.Store | None", loaded: "list[Fact]", found: dict[str, Any], asked: MassSettings
) -> bool:
    """Whether the store has the whole run, which is then printed. found: its run_id, fact_ids and left_out."""
    from fasttrace.workflow import mass_measured, mass_scores

    stored = None if target is None else mass_scores(target, loaded, found["run_id"], found["fact_ids"])
    if target is None or stored is None:
        return False
    _ask_again(target.path, found["run_id"], asked)
    work.keep_left_out()
    say_all_there(f"scores of {count(len(found['fact_ids']), 'fact')}", target.path, found["run_id"], err=True)
    _say_left_out(found["left_out"], loaded)
    _say_reasons(stored)
    emit(_means_by_n_edits(stored, *mass_measured(target, found["run_id"])), work.as_json)
    _emit_kinds(work, found["run_id"], asked)
    return True


def _ask_again(store: "str | Path", run_id: str, asked: "EditSettings | MassSettings") -> None:
    """Ask the judge at `judge_url` about the texts of a stored run that it failed to judge."""
    from fasttrace.editing.judge import judge_of
    from fasttrace.workflow import ask_again

    target = ft.Store(store)
    if asked.judge_url is not None and target.failed_judgements(run_id):
        judge = judge_of(asked, None)
        assert judge is not None
        ask_again(target, run_id, judge)


def _means_by_n_edits(scores: "pa.Table", measures: "pa.Table", norms: "pa.Table") -> "pa.Table":
    """Mean scores of the facts edited so far and what is measured of the model, one row per scoring."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from fasttrace.editing.breaks import by_number
    from fasttrace.editing.floors import floored_means

    names = ("rewrite", "paraphrase", "neighborhood", "overall", "p_after")
    means = scores.group_by("n_edits").aggregate([(name, "mean") for name in names])
    means = means.rename_columns([name.removesuffix("_mean") for name in means.column_names]).sort_by("n_edits")
    parts = [scores.filter(pc.equal(scores["n_edits"], n)) for n in means["n_edits"].to_pylist()]
    for name, values in floored_means(parts).items():
        means = means.append_column(name, pa.array(values))
    return means.join(by_number(measures, norms), "n_edits").sort_by("n_edits")


@command()
@_editing_options(TuneSettings)
def tune(
    work: Work,
    own: dict[str, str],
    known: bool,
    **given: Any,
) -> None:
    """Try values of a method's hyperparameter on the first 100 facts, and choose the best."""
    import pyarrow as pa

    from fasttrace.cluster.crew import Alone
    from fasttrace.editing.floors import floored_means
    from fasttrace.editing.tune import candidates, choose, mean_scores, tuned_values
    from fasttrace.workflow import edit_into

    asked = _settings(TuneSettings, given, own)
    tuned_values(asked)  # raises UserError before a model is loaded
    _check_places(asked, work.store)
    watch = watching(work.store)
    loaded = work.load_facts()
    decoder = work.load_model()
    if known:
        loaded = _known(work, watch, Alone(decoder), loaded, asked.protocol)
    rows, tried = [], []
    for candidate in candidates(decoder, loaded, asked):
        plan = candidate.plan
        with watch.bar(f"{candidate.setting} {candidate.value:g}", len(plan.encoded)) as done:
            if work.store is None:
                scores = pa.concat_tables([part.scores for part in plan.batches(progress=done)])
            else:
                target = ft.Store(work.store)
                edit_into(target, plan, done)
                scores = _stored(target, _named(plan.run["run_id"], plan), "*")
        _say_reasons(scores)
        rows.append(mean_scores(candidate, scores))
        tried.append(scores)
    best, floored = choose(rows), floored_means(tried)
    work.keep_left_out()
    table = pa.Table.from_pylist([{**row, "chosen": row is best} for row in rows])
    for name, values in floored.items():
        table = table.append_column(name, pa.array(values))
    emit(table, work.as_json)


@command()
@options("model", "dtype", "tokenizer", "trust_remote_code")
@setting_options(ExportSettings)
@options("json")
@click.argument("delta", type=click.Path(exists=True, dir_okay=False))
@click.argument("folder", type=NEW_FOLDER)
def export(
    model: str,
    dtype: str,
    tokenizer: str | None,
    trust_remote_code: bool,
    as_json: bool,
    delta: str,
    folder: str,
    **given: Any,
) -> None:
    """Write a model with the edits of a DELTA file to a new FOLDER, which transformers can load.

    With --format peft, FOLDER has only the edits, as a LoRA adapter for the unedited model.
    """
    from fasttrace.editing.delta import check_delta, load_delta
    from fasttrace.editing.export import export_edit

    asked = ExportSettings(**given)
    check_delta(delta)
    decoder = load(model, dtype, "cpu", tokenizer, trust_remote_code)
    made = export_edit(decoder, load_delta(delta, decoder), folder, asked)
    if as_json:
        of_adapter = {} if made.rank is None else {"rank": made.rank, "relative_error": made.relative_error}
        click.echo(json.dumps({"folder": str(made.folder), **of_adapter}))
    elif made.rank is None:
        click.echo(f"the edited model is in {made.folder}")
    else:
        click.echo(f"the edit is a LoRA adapter of rank {made.rank} in {made.folder}")
