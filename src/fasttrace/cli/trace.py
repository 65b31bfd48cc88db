"""Verbs before any edit: facts, trace, stats."""

import json
from dataclasses import asdict
from typing import Any

import click
import pyarrow as pa

import fasttrace as ft
from fasttrace.tracing.plan import METHODS, MODULES, TOKENS
from fasttrace.tracing.sweep import SCREEN, TARGETS

from .deliver import check_cache
from .options import bar, emit, load, numbers, open_store, options, stages


@click.command()
@options("facts", "relation", "limit", "model", "dtype", "device", "protocol", "store", "json")
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

        decoder = load(model, dtype, device)
        with bar("Checking facts", len(loaded)) as done:
            if store is None:
                verdicts = ft.check_known(decoder, loaded, protocol=protocol, progress=done).verdicts.to_pylist()
            else:
                verdicts = known_into(ft.Store(store), decoder, loaded, protocol, done)
        for row, verdict in zip(rows, verdicts, strict=True):
            row |= {name: verdict[name] for name in ("known", "p_true", "continuation", "reason")}
    emit(pa.Table.from_pylist(rows), as_json)
    if check and not as_json:
        click.echo(f"{sum(bool(row['known']) for row in rows)} of {len(rows)} facts are known to {model}")


@click.command()
@options("facts", "relation", "limit", "model", "dtype", "device", "store", "json", "protocol", "seed", "memory")
@click.option("--windows", default="5", show_default=True, callback=numbers, help="Window sizes, as 10,5,1.")
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

    target = None if dry_run else open_store(store)
    loaded = ft.load_facts(facts, relation=relation, limit=limit)
    decoder = load(model, dtype, device)
    plan = prepare_trace(decoder, loaded, protocol=protocol, seed=seed, **settings)
    if target is None:
        cost = plan.cost(memory)
        row = asdict(cost) | {"seconds": cost.wave_flops / block_rate(decoder), "gemm_peak": gemm_peak(decoder)}
        click.echo(json.dumps(row, indent=2) if as_json else cost_lines(row), nl=as_json)
        return
    with bar("Tracing", len(loaded)) as done:
        effort = trace_into(target, plan, memory, done)
    rows = target.query(
        "SELECT fact_id, prompt, target_true, p_clean, p_noised, kept, reason FROM traces WHERE run_id = ?",
        [plan.run["run_id"]],
    )
    emit(rows, as_json)
    if not as_json:
        sigma = "" if plan.sigma is None else f", σ = {plan.sigma:.4f}"
        click.echo(f"{effort.facts} facts added to {target.path} (run {plan.run['run_id']}{sigma})")
        if effort.flops:
            rate, peak = effort.flops / effort.seconds, gemm_peak(decoder)
            click.echo(
                f"{effort.flops / 1e12:.2f} TFLOP in {effort.seconds:.1f} s: {rate / 1e9:.0f} GFLOP/s, "
                f"{rate / peak:.0%} of the {peak / 1e9:.0f} that this machine's product reaches"
            )


@click.command()
@options("model", "dtype", "device", "corpus", "tokens", "ridge", "store", "json", "seed")
@click.option("--layers", callback=numbers, help="As 0,4,8; default: all.")
def stats(
    model: str, dtype: str, device: str, corpus: str | None, corpus_tokens: int, ridge: float, store: str | None,
    as_json: bool, seed: int, layers: list[int] | None,
) -> None:  # fmt: skip
    """Collect the keys' second moments, every layer in one pass."""
    check_cache()
    decoder = load(model, dtype, device)
    with stages() as progress:
        moments = ft.second_moments(
            decoder, corpus, tokens=corpus_tokens, layers=layers, seed=seed, ridge=ridge, progress=progress
        )
    if store is not None:
        ft.Store(store).add(moments)
    row = {
        "layers": len(moments.layers),
        "n_tokens": moments.n_tokens,
        "corpus": moments.corpus,
        "path": str(moments.path),
    }
    emit(pa.Table.from_pylist([row]), as_json)


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
