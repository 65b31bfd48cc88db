"""Shared by the verbs: options by name, progress on stderr, results on stdout."""

import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

import fasttrace as ft
from fasttrace.analysis.naming import LOCALIZATIONS, MODULES
from fasttrace.errors import UserError
from fasttrace.packaged import PACKAGED, full_name
from fasttrace.protocols import Protocol
from fasttrace.settings.base import Setting, replaced, settings_of, text_of
from fasttrace.settings.cluster import ClusterSettings, WorkerSettings
from fasttrace.settings.prompt import PromptSettings
from fasttrace.settings.study import FactSettings, StudySettings
from fasttrace.show.words import METRICS

from .deliver import STORE
from .help import Choice, completing, completing_files, option

if TYPE_CHECKING:
    import pyarrow as pa

    from fasttrace.cluster.crew import Crew
    from fasttrace.facts import Fact
    from fasttrace.facts.load import Loaded
    from fasttrace.facts.pairs import Paired
    from fasttrace.recall import Question
    from fasttrace.show.grids import Heatmap
    from fasttrace.show.watch import Watch
    from fasttrace.tracing import TraceResult

Verb = Callable[..., None]
Rows = list[dict[str, Any]]

# The settings that say which model is loaded and how: the arguments of `load`.
OF_MODEL = ("model", "dtype", "device", "tokenizer", "trust_remote_code")

# The settings that say how facts are read, and which of them.
READING = ("relation", "limit", "order", "zsre", "format", "map", "on_bad")


def watching(store: str | Path | None) -> "Watch":
    """Shows what the verb does until it ends, on stderr and, where it has a store, to `fasttrace status`."""
    from fasttrace.show.watch import Watch

    context = click.get_current_context()
    return context.with_resource(Watch(store, context.info_name or ""))


def only_one(_: click.Context, option: click.Parameter, values: tuple[str, ...]) -> str | None:
    """The value of an option that may be given once. Raises BadParameter for a second one, which would replace it."""
    if len(values) > 1:
        raise click.BadParameter(f"expected one store, got {len(values)}; only verbs that read stores take several")
    return values[0] if values else None


class SettingType(click.ParamType):
    """Type of the option of a setting. The setting checks and converts the value."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.kind, self.name = setting, setting.kind, setting.kind.metavar

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """The placeholder of the value in the help, such as [one|other] for a choice."""
        return self.kind.metavar

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The choices that begin with `incomplete`, or else the files of a path, for completion in a shell."""
        words = [CompletionItem(word) for word in self.kind.choices if word.startswith(incomplete)]
        return words if words or not self.kind.is_path else completing_files(ctx, param, incomplete)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The setting's value. Raises a UserError that names the verb, or click's error for a missing path."""
        verb = self.setting.owner if ctx is None or ctx.info_name is None else ctx.info_name
        converted = attrs.evolve(self.setting, owner=verb).convert(value)
        if self.kind.is_path and converted not in (None, self.setting.default, *self.kind.choices):
            click.Path(exists=True).convert(converted, param, ctx)
        return converted


def setting_options(kind: type, *, without: Sequence[str] = (), only: Sequence[str] = ()) -> Callable[[Verb], Verb]:
    """Add an option for every setting of a type, in their order. Its value is passed under the setting's name.

    without: settings that get no option. only: if given, the settings that get one.
    """
    chosen = [one for name, one in settings_of(kind).items() if name in (only or settings_of(kind))]

    def add(verb: Verb) -> Verb:
        for one in reversed(chosen):
            if one.name not in without:
                verb = _option(one)(verb)
        return verb

    return add


def _option(one: Setting, **more: Any) -> Callable[[Verb], Verb]:
    if one.kind.is_flag:
        return option(
            one.option, one.name, heading=one.heading, is_flag=True, default=one.default, help=one.description
        )
    default = None if one.default is None else text_of(one.default)
    return option(
        one.option,
        one.name,
        heading=one.heading,
        type=SettingType(one),
        default=default,
        show_default=True,
        help=one.description,
        **more,
    )


def options(*names: str) -> Callable[[Verb], Verb]:
    """The options that verbs share, by name, in the order given."""
    known: dict[str, Callable[[Verb], Verb]] = {
        **{name: _option(settings_of(StudySettings)[name]) for name in OF_MODEL},
        "model": _option(
            settings_of(StudySettings)["model"], shell_complete=completing(lambda: PACKAGED, files="")
        ),
        "reading": setting_options(FactSettings, only=READING),
        "prompt": setting_options(PromptSettings),
        "pairs": option(
            "--pairs",
            heading="Facts",
            type=SettingType(pairs := settings_of(FactSettings)["pairs"]),
            is_flag=False,
            flag_value="1",
            help=f"{pairs.help}; without a number, one.",
        ),
        "facts": option(
            "--facts",
            heading="Facts",
            type=click.Path(),
            metavar="FILE",
            help="Facts in any known format: a JSON, JSONL, CSV, TSV or Parquet file, a folder of them, or "
            "hub:owner/name; by default the built-in facts.",
        ),
        "store": option(
            "--store",
            heading="Output",
            type=STORE,
            multiple=True,
            callback=only_one,
            metavar="FILE",
            help="DuckDB file for the results.",
        ),
        "stores": option(
            "--store",
            "stores",
            heading="Store",
            multiple=True,
            shell_complete=completing_files,
            metavar="[NAME=]FILE",
            help="DuckDB file to read, or a folder of Parquet files; repeat it to read several together.",
        ),
        "json": option("--json", "as_json", heading="Output", is_flag=True, help="Print JSON."),
        "format": option(
            "--format",
            "format_",
            heading="Output",
            type=Choice(["text", "markdown", "latex", "csv", "json"]),
            default="text",
            show_default=True,
            help="Format of the numbers.",
        ),
        "score": option(
            "--score", heading="Analysis", default="rewrite", show_default=True, help="Edit score to analyse."
        ),
        "resamples": option(
            "--resamples",
            heading="Analysis",
            type=click.IntRange(0),
            default=1000,
            show_default=True,
            help="Bootstrap resamples of the facts for the 95 % intervals; 0: none. Verdicts need at least 200.",
        ),
        "tracing window": option(
            "--tracing-window",
            "--window",
            "tracing_window",
            heading="Analysis",
            type=click.IntRange(1),
            metavar="LAYERS",
            help="Window size of the tracing effects, in layers; by default that of the edits which are compared with "
            "them, and every one where none is.",
        ),
        "localization": option(
            "--localization",
            "--method",
            "localization",
            heading="Analysis",
            type=Choice(LOCALIZATIONS),
            help="How the traces localize facts: the method of `fasttrace trace`, and with counterfactual prompts "
            "counterfactual; by default as the paper's table or figure, mostly denoise.",
        ),
        "metric": option(
            "--metric",
            heading="Analysis",
            type=Choice(list(METRICS)),
            help="What the tracing effects are made of; by default probability, and with --localization every metric.",
        ),
        "module": option(
            "--module",
            heading="Analysis",
            type=Choice(MODULES),
            help="Whose outputs the traces replace; by default mlp, and for `roles` every module, told apart.",
        ),
        "run": option(
            "--run",
            heading="Analysis",
            metavar="ID",
            help="One tracing run, which --module, --method and --metric then follow, or one editing run: its id or "
            "the start of it. By default every run, told apart.",
        ),
    }

    def add(verb: Verb) -> Verb:
        for name in reversed(names):
            verb = known[name](verb)
        return verb

    return add


@attrs.frozen(kw_only=True)
class Work:
    """The shared options of a verb that computes: the facts, the model and its device, and the output.

    facts: where they are, None for the built-in set. reading: how they are read, and which of them. stated: the one
    fact that is used instead, if it has a prompt.
    """

    facts: str | None
    reading: FactSettings
    stated: PromptSettings
    model: str
    dtype: str
    device: str
    tokenizer: str | None
    trust_remote_code: bool
    store: str | None
    as_json: bool

    @functools.cached_property
    def loaded(self) -> "Loaded":
        """The facts with what was left out of their source, of which stderr is told. Raises FactError as
        `load_facts`."""
        from fasttrace.facts import stated_fact
        from fasttrace.facts.load import Loaded, read_facts

        if self.stated.prompt is not None:
            if self.facts is not None:
                raise UserError(f"expected --prompt or facts of a file, got both: '{self.facts}'")
            return Loaded("--prompt", "prompt", [stated_fact(self.stated.prompt, self.stated)])
        loaded = read_facts(self.facts, self.reading)
        if (said := loaded.summary()) is not None:
            click.echo(said, err=True)
        return loaded

    def load_facts(self) -> "list[Fact]":
        return self.loaded.facts

    def keep_left_out(self) -> None:
        """Store what was left out of the facts, where there is a store. A verb does so once its work is done."""
        if self.store is not None:
            ft.Store(self.store).add_left_out(self.loaded.source, self.loaded.left_out)

    def pair_facts(self, loaded: "Sequence[Fact]", count: int) -> "Paired":
        """The facts with counterfactual subjects from the whole file. Only the model's tokenizer is loaded."""
        from fasttrace.facts.load import read_facts
        from fasttrace.facts.pairs import pair_subjects

        every = self.loaded.facts
        whole = replaced(self.reading, relation=None, limit=None, order="given")
        if self.reading != whole:
            every = read_facts(self.facts, whole).facts
        paired = pair_subjects(self.load_tokenizer(), loaded, every, count).checked()
        if paired.reasons:
            fact_id, reason = next(iter(paired.reasons.items()))
            click.echo(
                f"{len(paired.reasons)} of {len(loaded)} facts have no pair, such as '{fact_id}': {reason}", err=True
            )
        return paired

    def load_model(self, *, driven: bool = True) -> Any:
        """driven: as for `load`."""
        return load(*(getattr(self, name) for name in OF_MODEL), driven=driven)

    def crew(self, asked: WorkerSettings, watch: "Watch", *, driven: bool = True) -> "AbstractContextManager[Crew]":
        """Who computes with the model. watch: shows the workers. driven: as for `load`."""
        return crew_of(asked, *(getattr(self, name) for name in OF_MODEL), driven=driven, watch=watch)

    def check_shard(self, asked: ClusterSettings) -> None:
        """Raise UserError for a share of the work that no store keeps."""
        if asked.shard is not None and self.store is None:
            raise UserError("--shard: expected --store FILE for a share of the work, got no store")

    def load_tokenizer(self) -> Any:
        from fasttrace.models.load import load_tokenizer

        return load_tokenizer(
            self.model, self.dtype, tokenizer=self.tokenizer, trust_remote_code=self.trust_remote_code
        )

    def asks(self, verb: str, **parts: Any) -> "Question":
        """Which runs the verb has with this model: a question to be asked before the model is loaded."""
        return asks(verb, self.model, self.dtype, self.device, self.tokenizer, **parts)


def work_options(verb: Callable[..., None]) -> Verb:
    """Add the options of `Work`. The verb receives them as its first argument."""
    names = [field.name for field in attrs.fields(Work) if field.name not in ("reading", "stated")]

    @functools.wraps(verb)
    def packed(**given: Any) -> None:
        stated = PromptSettings(**{name: given.pop(name) for name in settings_of(PromptSettings)})
        reading = FactSettings(**{name: given.pop(name) for name in READING})
        if stated.prompt is not None:
            _check_reads_nothing(READING)
        verb(Work(reading=reading, stated=stated, **{name: given.pop(name) for name in names}), **given)

    return options("prompt", "facts", "reading", *OF_MODEL, "store", "json")(packed)


def _check_reads_nothing(names: Sequence[str]) -> None:
    """Raise UserError where the command line has one of the options that say how facts are read."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = settings_of(FactSettings)[name].option
            raise UserError(f"{option}: expected facts of a file, got --prompt, which is one fact")


def cluster_options(verb: Callable[..., None]) -> Verb:
    """Add the options of who computes. The verb receives them as its argument `cluster`."""

    @functools.wraps(verb)
    def packed(*args: Any, **given: Any) -> None:
        names = settings_of(ClusterSettings)
        verb(*args, cluster=ClusterSettings(**{name: given.pop(name) for name in names}), **given)

    return setting_options(ClusterSettings)(packed)


def planned_workers(asked: WorkerSettings) -> int | None:
    """The number of workers that a plan is made for, None for this process.

    Raises UserError where only the cluster knows how many it has room for.
    """
    if isinstance(asked.workers, str):
        raise UserError(f"--workers: expected a number with --dry-run, got {asked.workers}")
    return asked.workers


@contextmanager
def crew_of(
    asked: WorkerSettings,
    model: str,
    dtype: str,
    device: str,
    tokenizer: str | None = None,
    trust_remote_code: bool = False,
    *,
    driven: bool = True,
    watch: "Watch",
) -> "Iterator[Crew]":
    """Who computes with a model: this process, which loads it, or workers, which do.

    watch: shows the workers. The other arguments are those of `load`.
    """
    from fasttrace.cluster.crew import Alone

    if asked.workers is None:
        yield Alone(load(model, dtype, device, tokenizer, trust_remote_code, driven=driven))
        return
    from fasttrace.cluster.pool import pool

    named = {"source": model, "dtype": dtype, "device": device}
    with pool({**named, "tokenizer": tokenizer, "trust_remote_code": trust_remote_code}, asked, watch.tick) as made:
        yield made


def asks(
    verb: str,
    model: str,
    dtype: str,
    device: str,
    tokenizer: str | None = None,
    *,
    corpora: Sequence[Any] = (),
    **parts: Any,
) -> "Question":
    """As `Work.asks`. corpora: paths of the texts that the runs follow from, or None for sampled text."""
    from fasttrace.models.files import local_files
    from fasttrace.recall import NONE, question

    files = local_files(model, tokenizer)
    given = [Path(corpus).expanduser() for corpus in corpora if corpus is not None]
    texts = [text for one in given for text in ([*one.glob("*.txt"), *one.rglob("*.npz")] if one.is_dir() else [one])]
    return NONE if files is None else question(verb, [*files, *texts], dtype=dtype, device=device, **parts)


def show_first(batch: "TraceResult") -> None:
    """Draw the first traced fact of a batch on stderr, if that is a terminal."""
    if sys.stderr.isatty():
        # A write to stderr prints above a bar, while click.echo would go round it.
        sys.stderr.write(drawn_heatmap(batch.heatmap(batch.cells["fact_id"][0].as_py()), err=True))


def print_heatmaps(heats: "Sequence[Heatmap]") -> None:
    """Print heatmaps on stdout."""
    # drawn_heatmap has decided about colours, which click would take from whatever is no terminal.
    click.echo("\n".join(drawn_heatmap(heat) for heat in heats), nl=False, color=True)


def drawn_heatmap(heat: "Heatmap", *, err: bool = False) -> str:
    """A heatmap as lines for stdout, or for stderr. Where these show no colour, digits take its place."""
    from rich.console import Console

    from fasttrace.show.terminal import heatmap_text

    console = Console(stderr=err)
    colored = console.color_system is not None and not console.no_color
    with console.capture() as drawn:
        console.print(heatmap_text(heat, console.width, color=colored), soft_wrap=True)
    return drawn.get()


def load(
    model: str,
    dtype: str,
    device: str,
    tokenizer: str | None = None,
    trust_remote_code: bool = False,
    *,
    driven: bool = True,
) -> Any:
    """Load a model. driven: refuse one whose blocks cannot be driven before its weights are read."""
    from rich.console import Console

    from fasttrace.models.load import check_driven

    with Console(stderr=True).status(f"Loading {full_name(model)}"):
        if driven:
            check_driven(model, trust_remote_code=trust_remote_code)
        return ft.load_model(
            model, dtype=dtype, device=device, tokenizer=tokenizer, trust_remote_code=trust_remote_code
        )


def known_verdicts(
    work: Work,
    watch: "Watch",
    crew: "Crew | None",
    facts: "Sequence[Fact]",
    protocol: Protocol,
    asked: WorkerSettings,
) -> Rows:
    """Verdicts on which facts the model knows, from the store where that has them all.

    crew: who has loaded the model already; with None, those that are asked for load it where it is needed.
    """
    from fasttrace.recall import NONE
    from fasttrace.tracing.known import known_run
    from fasttrace.workflow import known_into, known_rows, known_stored

    store = None if work.store is None else ft.Store(work.store)
    # A model that was loaded before may be of older files than the question.
    question = NONE if store is None or crew is not None else work.asks("facts", protocol=protocol)
    found = question.answer()
    if store is not None and found and (stored := known_stored(store, facts, found["run_id"])) is not None:
        click.echo(f"nothing to test: all {len(facts)} verdicts are in {store.path}", err=True)
        return stored
    loaded = work.crew(asked, watch, driven=False) if crew is None else nullcontext(crew)
    with loaded as theirs, watch.bar("Checking facts", len(facts)) as done:
        if store is None:
            return known_rows(theirs, facts, protocol, done)
        question.keep({"run_id": theirs.ask(known_run, protocol)["run_id"]})
        return known_into(store, theirs, facts, protocol, done)


def say_all_there(what: str, store: Any, run_id: str | None = None, *, err: bool = False) -> None:
    """Say that a command has nothing to compute, because the store has it all."""
    run = "" if run_id is None else f" (run {run_id})"
    click.echo(f"nothing to compute: all {what} are in {store}{run}", err=err)


def emit(rows: "Rows | pa.Table", as_json: bool, title: str | None = None) -> None:
    """Print rows of the same columns, or a table, as text or JSON."""
    import pyarrow as pa

    from fasttrace.analysis.render import render

    table = pa.Table.from_pylist(rows) if isinstance(rows, list) else rows
    click.echo(render(table, "json" if as_json else "text", title=title), nl=False)


def read_stdin(what: str) -> str:
    """All of stdin. what: its name in the UserError that is raised where it is not UTF-8 text."""
    try:
        text = sys.stdin.read()
        text.encode()  # in the C locale, Python reads other bytes as halves of surrogate pairs
    except UnicodeError as error:
        raise UserError(f"{what} on stdin is not UTF-8 text") from error
    return text


def open_store(path: str | None) -> Any:
    if path is None:
        raise UserError("expected --store FILE, got no store")
    return ft.Store(path)


def open_stores(named: Sequence[str], timeout_s: float = 60.0) -> Any:
    """The store of one FILE without a name. Several, or one with a name, are opened together as `Stores`."""
    if not named:
        raise UserError("expected --store FILE, got no store")
    pairs = [named_store(text) for text in named]
    if len(pairs) == 1 and not pairs[0][0]:
        return ft.Store(pairs[0][1], timeout_s=timeout_s)
    return ft.Stores([(name or Path(path).stem, path) for name, path in pairs], timeout_s=timeout_s)


def named_store(text: str) -> tuple[str, str]:
    """ "a=runs/a.duckdb" → ("a", "runs/a.duckdb"). The name of a path alone is ""."""
    named = re.fullmatch(r"([A-Za-z_]\w*)=(.+)", text)
    return (named[1], named[2]) if named else ("", text)
