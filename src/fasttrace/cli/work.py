"""What verbs that compute share: facts, a model, who computes with it, and progress on stderr."""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click
from click.core import ParameterSource

import fasttrace as ft
from fasttrace.errors import UserError
from fasttrace.packaged import full_name
from fasttrace.protocols import Protocol
from fasttrace.settings.base import replaced, settings_of
from fasttrace.settings.cluster import ClusterSettings, WorkerSettings
from fasttrace.settings.prompt import PromptSettings
from fasttrace.settings.study import FactSettings

from .options import OF_MODEL, READING, Verb, options
from .printed import Rows

if TYPE_CHECKING:
    from fasttrace.cluster.crew import Crew
    from fasttrace.facts import Fact
    from fasttrace.facts.load import Loaded
    from fasttrace.facts.pairs import Paired
    from fasttrace.recall import Question
    from fasttrace.show.watch import Watch


def watching(store: str | Path | None) -> "Watch":
    """Shows what the verb does until it ends, on stderr and, where it has a store, to `fasttrace status`."""
    from fasttrace.show.watch import Watch

    context = click.get_current_context()
    return context.with_resource(Watch(store, context.info_name or ""))


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

    # Rich also takes a pipe for a terminal where FORCE_COLOR is set.
    console = Console(stderr=True, quiet=not sys.stderr.isatty())
    with console.status(f"Loading {full_name(model)}"):
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
