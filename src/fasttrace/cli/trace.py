"""Verbs before any edit: facts, trace, stats."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

import fasttrace as ft
from fasttrace.errors import UserError
from fasttrace.places import replacing
from fasttrace.protocols import Protocol
from fasttrace.settings.moments import MomentSettings
from fasttrace.settings.trace import TraceSettings

from .deliver import FILE, STDOUT, check_apart, check_cache, saying_overwritten
from .options import (
    Work,
    bar,
    emit,
    known_verdicts,
    load,
    open_store,
    options,
    say_all_there,
    setting_options,
    show_first,
    stages,
    work_options,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from fasttrace.facts import Fact


@click.command()
@work_options
@setting_options(TraceSettings, only=["protocol"])
@options("pairs")
@click.option("--out", type=FILE, metavar="FILE", help="With --pairs: write the paired facts as JSONL, for --facts.")
@click.option(
    "--check",
    is_flag=True,
    help="Test which facts the model knows: o_true must be in the text of the model's first 36 greedy tokens, and with "
    "protocol released p(o_true) must be at least 0.02.",
)
@click.option(
    "--show",
    is_flag=True,
    help="Print every prompt with the target that follows it, and what joins them: the fact's target_prefix, or what "
    "the text asks for, usually a space.",
)
def facts(work: Work, protocol: Protocol, pairs: int | None, out: str | None, check: bool, show: bool) -> None:
    """List, filter, pair and test facts."""
    asked = [name for name, given in (("--show", show), ("--check", check), ("--pairs", pairs)) if given]
    if len(asked) > 1:
        raise UserError(f"expected one of --show, --check and --pairs, got {' and '.join(asked)}")
    if out is not None and pairs is None:
        raise UserError("--out: expected --pairs, whose facts it writes, got --out alone")
    check_apart(("--store", work.store), ("--out", out), ("--facts", work.facts))
    loaded = work.load_facts()
    if pairs is not None:
        _pair(work, loaded, pairs, out)
        return
    if work.store is not None:
        ft.Store(work.store).add_facts(loaded)
    if show:
        _emit([row for fact in loaded for row in _joined(fact, work.as_json)], work.as_json)
        return
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
        verdicts = known_verdicts(work, None, loaded, protocol)
        for row, verdict in zip(rows, verdicts, strict=True):
            row |= {name: verdict[name] for name in ("known", "p_true", "continuation", "reason")}
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
    if out == STDOUT:
        click.echo(text, nl=False)
        return
    if out is not None:
        with saying_overwritten(out), replacing(out) as draft:
            draft.write_text(text, encoding="utf-8")
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


def _joined(fact: "Fact", as_json: bool) -> Iterator[dict[str, Any]]:
    """A row per prompt and target of a fact, with the text that is scored. A joint is quoted, except in JSON."""
    from fasttrace.facts.joint import joint

    prompts = [("prompt", fact.text), *(("paraphrase", text) for text in fact.paraphrases)]
    prompts += [("neighborhood", text) for text in fact.neighborhood]
    for kind, prompt in prompts:
        for name, target in (("true", fact.target_true), ("false", fact.target_false)):
            if target is not None:
                between = joint(prompt, target, fact.target_prefix)
                about = {"fact_id": fact.fact_id, "kind": kind, "target": name}
                text = prompt + between + target.strip()
                yield {**about, "joint": between if as_json else repr(between), "text": text}


def _emit(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print rows. In text, line breaks and other control characters of a cell are escaped, so that a row is a line."""
    shown = rows if as_json else [{name: _escaped(value) for name, value in row.items()} for row in rows]
    emit(shown, as_json)


def _escaped(value: Any) -> Any:
    if not isinstance(value, str) or value.isprintable():
        return value
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in value)


@click.command()
@work_options
@options("pairs")
@setting_options(TraceSettings)
@click.option("--dry-run", is_flag=True, help="Print FLOPs, memory and expected time, and compute nothing.")
def trace(work: Work, pairs: int | None, dry_run: bool, **given: Any) -> None:
    """Trace facts: measure what restoring each window brings back."""
    from fasttrace.recall import NONE
    from fasttrace.tracing import prepare_trace
    from fasttrace.tracing.cost import block_rate, gemm_peak
    from fasttrace.workflow import has_traced, trace_into

    settings = TraceSettings(**given)
    if pairs is not None and settings.corruption != "counterfactual":
        raise UserError(f"--pairs: expected --corruption counterfactual, got {settings.corruption}")
    target = None if dry_run else open_store(work.store)
    loaded = work.load_facts()
    if pairs is not None:
        loaded = work.pair_facts(loaded, pairs).filled(loaded)
    asked = NONE if target is None else work.asks("trace", facts=loaded, settings=settings)
    found = asked.answer()
    if target is not None and found and has_traced(target, loaded, **found):
        emit(_traced(target, found["run_id"], settings), work.as_json)
        if not work.as_json:
            say_all_there(f"{len(found['contrasts'])} facts", target.path, found["run_id"])
        return
    decoder = work.load_model()
    plan = prepare_trace(decoder, loaded, settings=settings)
    if target is None:
        cost = plan.cost()
        row = asdict(cost) | {"seconds": cost.wave_flops / block_rate(decoder), "gemm_peak": gemm_peak(decoder)}
        click.echo(json.dumps(row, indent=2) if work.as_json else cost_lines(row), nl=work.as_json)
        return
    asked.keep({"run_id": plan.run["run_id"], "contrasts": plan.contrasts.to_pylist()})
    with bar("Tracing", len(loaded)) as done:
        effort = trace_into(target, plan, done, show_first)
    emit(_traced(target, plan.run["run_id"], settings), work.as_json)
    if not work.as_json:
        sigma = "" if plan.sigma is None else f", σ = {plan.sigma:.4f}"
        click.echo(f"{effort.facts} facts added to {target.path} (run {plan.run['run_id']}{sigma})")
        if effort.flops:
            rate, peak = effort.flops / effort.seconds, gemm_peak(decoder)
            click.echo(
                f"{effort.flops / 1e12:.2f} TFLOP in {effort.seconds:.1f} s: {rate / 1e9:.0f} GFLOP/s, "
                f"{rate / peak:.0%} of the {peak / 1e9:.0f} that this machine's matrix product reaches"
            )


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


@click.command()
@options("model", "dtype", "device", "store", "json")
@setting_options(MomentSettings)
def stats(model: str, dtype: str, device: str, store: str | None, as_json: bool, **given: Any) -> None:
    """Collect the second moments of the keys, for all layers in one pass."""
    settings = MomentSettings(**given)
    check_cache()
    decoder = load(model, dtype, device)
    with stages() as progress:
        moments = ft.second_moments(decoder, settings=settings, progress=progress)
    if store is not None:
        ft.Store(store).add(moments)
    row = {
        "layers": len(moments.layers),
        "n_tokens": moments.n_tokens,
        "corpus": moments.corpus,
        "path": str(moments.path),
    }
    emit([row], as_json)


def cost_lines(row: dict[str, Any]) -> str:
    """The text that `trace --dry-run` prints. row: a `Cost` as a dict, with `seconds` and `gemm_peak` added."""
    weights, moved, peak = (row[name] / 2**30 for name in ("weight_bytes", "activation_bytes", "peak_bytes"))
    rate, product = row["wave_flops"] / row["seconds"] / 1e9, row["gemm_peak"] / 1e9
    lines = (
        ("facts", f"{row['facts']}, if all are known"),
        ("cells", f"{row['cells']} in the grids, {row['computed']} to compute"),
        ("waves", f"{row['waves']}, the largest with {row['rows']} rows"),
        ("work", f"at least {row['flops'] / 1e12:.3f} TFLOP, {row['wave_flops'] / 1e12:.3f} in these waves"),
        ("memory traffic", f"{weights:.2f} GiB of weights, {moved:.2f} GiB of rows"),
        ("peak memory", f"{peak:.2f} GiB with the weights"),
        (
            "expected time",
            f"{row['seconds']:.1f} s at {rate:.0f} GFLOP/s, a block's current rate (matrix product: {product:.0f})",
        ),
    )
    return "".join(f"{name:<15}{text}\n" for name, text in lines)
