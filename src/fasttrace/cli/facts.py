"""The verb facts: list, show, profile, pair and test facts."""

import json
from typing import TYPE_CHECKING, Any

import attrs
import click

import fasttrace as ft
from fasttrace.errors import UserError
from fasttrace.places import replacing
from fasttrace.protocols import Protocol
from fasttrace.settings.cluster import ClusterSettings
from fasttrace.settings.trace import TraceSettings
from fasttrace.show.words import escaped

from .deliver import FILE, STDOUT, check_apart, saying_overwritten
from .help import command, completing_files, option
from .look import looked_at, profile_row, profile_tables, shown
from .options import cluster_options, options, setting_options
from .printed import emit
from .work import Work, known_verdicts, watching, work_options

if TYPE_CHECKING:
    from fasttrace.facts import Fact

SHOWN = 3  # facts that --show prints without a number


def _count(_: click.Context, option: click.Parameter, text: str | None) -> int | None:
    """The value of --show. The word after it may be the file, so the error says what it should be."""
    if text is None:
        return None
    if not text.isdecimal() or not int(text):
        raise UserError(f"{option.opts[0]}: expected a whole number of at least 1, got {text!r}")
    return int(text)


@command()
@click.argument("file", required=False, shell_complete=completing_files)
@work_options
@setting_options(TraceSettings, only=["protocol"])
@cluster_options
@options("pairs")
@option(
    "--out",
    heading="Output",
    type=FILE,
    metavar="FILE",
    help="With --pairs: write the paired facts as JSONL, for --facts.",
)
@option(
    "--check",
    is_flag=True,
    help="Test which facts the model knows: o_true must be in the text of the model's first 36 greedy tokens, and with "
    "protocol released p(o_true) must be at least 0.02.",
)
@option(
    "--show",
    metavar="INTEGER",
    is_flag=False,
    flag_value=str(SHOWN),
    callback=_count,
    help="Print the first facts with their tokens, in which the subject is marked, their targets and probes, and what "
    f"joins a prompt to what is scored after it; without a number, {SHOWN}.",
)
@option(
    "--profile",
    "profiled",
    is_flag=True,
    help="Print what the facts are made of: relations, probes, lengths in tokens, and facts to look at before a run.",
)
def facts(
    work: Work,
    file: str | None,
    protocol: Protocol,
    pairs: int | None,
    out: str | None,
    check: bool,
    show: int | None,
    profiled: bool,
    cluster: ClusterSettings,
) -> None:
    """List, filter, show, profile, pair and test facts.

    FILE is the same as --facts FILE.
    """
    choices = (("--show", show), ("--profile", profiled), ("--check", check), ("--pairs", pairs))
    asked = [name for name, given in choices if given]
    if len(asked) > 1:
        raise UserError(f"expected one of --show, --profile, --check and --pairs, got {' and '.join(asked)}")
    if out is not None and pairs is None:
        raise UserError("--out: expected --pairs, whose facts it writes, got --out alone")
    if file is not None:
        if work.stated.prompt is not None:
            raise UserError(f"expected --prompt or FILE, got both: '{file}'")
        if work.facts is not None:
            raise UserError(f"expected FILE or --facts FILE, got both: '{file}' and '{work.facts}'")
        work = attrs.evolve(work, facts=file)
    if not check and cluster != ClusterSettings():
        raise UserError("--workers, --gpus-per-worker, --shard: expected --check, which computes, got one without it")
    check_apart(("--store", work.store), ("--out", out), ("--facts" if file is None else "FILE", work.facts))
    loaded = work.load_facts()
    if pairs is not None:
        _pair(work, loaded, pairs, out)
    elif show is not None:
        _show(work, loaded[:show])
    elif profiled:
        _profile(work)
    else:
        _list(work, check, protocol, cluster)


def _keep(work: Work) -> None:
    """Store the facts and what was left out of them, where there is a store."""
    if work.store is not None:
        ft.Store(work.store).add_facts(work.loaded.facts)
        work.keep_left_out()


def _show(work: Work, first: "list[Fact]") -> None:

    tokenizer = work.load_tokenizer()
    rows = [looked_at(tokenizer, fact) for fact in first]
    _keep(work)
    click.echo(json.dumps(rows, ensure_ascii=False, indent=2) + "\n" if work.as_json else shown(rows), nl=False)


def _profile(work: Work) -> None:
    from fasttrace.facts.profile import profile

    found = profile(work.load_tokenizer(), work.loaded.facts)
    _keep(work)
    about = (work.loaded.source, work.loaded.format, len(work.loaded.left_out))
    if work.as_json:
        click.echo(json.dumps(profile_row(found, *about), ensure_ascii=False, indent=2))
        return
    for title, rows in profile_tables(found, *about):
        emit(rows, False, title=title)
        click.echo()


def _list(work: Work, check: bool, protocol: Protocol, cluster: ClusterSettings) -> None:
    """Print a row per fact, with `check` its verdict, too."""
    from fasttrace.workflow import tested_share

    loaded = tested_share(work.loaded.facts, cluster.shard)
    if work.store is not None:
        ft.Store(work.store).add_facts(loaded)  # raises before a model is loaded
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
        verdicts = known_verdicts(work, watching(work.store), None, loaded, protocol, cluster)
        for row, verdict in zip(rows, verdicts, strict=True):
            row |= {name: verdict[name] for name in ("known", "p_true", "continuation", "reason")}
    work.keep_left_out()
    _emit(rows, work.as_json)
    if check and not work.as_json:
        click.echo(f"{sum(bool(row['known']) for row in rows)} of {len(rows)} facts are known to {work.model}")


def _pair(work: Work, loaded: "list[Fact]", count: int, out: str | None) -> None:
    """Give the facts counterfactual subjects, and print and write them. A store keeps them with the traces alone."""
    from fasttrace.facts.formats import own_record

    paired = work.pair_facts(loaded, count)
    if work.store is not None:
        ft.Store(work.store).add_facts(loaded)
    text = "".join(json.dumps(own_record(fact), ensure_ascii=False) + "\n" for fact in paired.facts)
    if out is not None and out != STDOUT:
        with saying_overwritten(out), replacing(out) as draft:
            draft.write_text(text, encoding="utf-8")
    work.keep_left_out()
    if out == STDOUT:
        click.echo(text, nl=False)
        return
    found = {fact.fact_id: fact for fact in paired.facts}
    _emit(
        [
            {
                "fact_id": fact.fact_id,
                "relation": fact.relation,
                "subject": fact.subject,
                "counterfactuals": _counterfactuals(found.get(fact.fact_id), work.as_json),
                "reason": paired.reasons.get(fact.fact_id),
            }
            for fact in loaded
        ],
        work.as_json,
    )
    if not work.as_json:
        click.echo(f"{len(paired.facts)} of {len(loaded)} facts have a counterfactual" + (f", in {out}" if out else ""))


def _counterfactuals(fact: "Fact | None", as_json: bool) -> list[str] | str | None:
    """The counterfactual subjects, and the whole prompts, of a fact. In text they are joined."""
    every = None if fact is None else [*fact.counterfactual_subject, *fact.counterfactual_prompt]
    return every if as_json or every is None else "; ".join(every)


def _emit(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print rows. In text, line breaks and other control characters of a cell are escaped, so that a row is a line."""
    emit(rows if as_json else [{name: escaped(value) for name, value in row.items()} for row in rows], as_json)
