"""Edits of GPT-J-6B at full size, with random weights made on the device: seconds, edits per second and peak memory.

python bench/bench_gptj_edits.py --dtype bfloat16 [--device cuda] [--methods rome memit ft-1 ft-5] [--out FILE]
python bench/bench_gptj_edits.py --dtype float32 --device cpu --small     at a size that runs anywhere

Layer 5, error injection, the default hyperparameters, and as many contexts as a method has by default, which the names
of ROME's and MEMIT's rows say. The facts have prompts as long as CounterFact's (8 tokens), 2 paraphrases and 10
neighbourhood prompts. Each method makes one edit, and then one edit of each of 8 facts (4 with ft-5, whose weight
changes and Adam moments take 4 GB a fact), unscored and in one batch. Rows by themselves: second moments (m = 16384, of
the layers that the methods solve with), the first solve with one of them, scoring, and one ROME edit in the released
way (bench/released_edits.py). Both ways round at every step, so the last row has the distance of each one's δ from the
released way's in a wider dtype. Every kernel has run before it is timed.
`bytes` is the peak of the GPU's memory beside the model. Each row is printed and written as soon as it is finished.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import released_edits as released
import torch
from bench_gptj import WIDER, made_facts, random_gptj, word_tokenizer
from harness import DEVICE, BenchRow, about, command, device, positive, seconds, write

import fasttrace as ft
from fasttrace.editing import prepare_edit
from fasttrace.editing.collect import second_moments
from fasttrace.editing.delta import Edit
from fasttrace.editing.hyperparameters import window_of
from fasttrace.editing.moments import Moments
from fasttrace.editing.plan import EditPlan
from fasttrace.editing.scores import Scorer
from fasttrace.editing.value import contexts_of
from fasttrace.models import Decoder
from fasttrace.places import check_file
from fasttrace.settings import methods as known
from fasttrace.settings.base import replaced

METHODS = ("rome", "memit", "ft-1", "ft-5")
LAYER, SMALL_LAYER = 5, 1
TOKENS, SMALL_TOKENS = 32768, 1024  # of the corpus
# The words are drawn at random, so C is as badly conditioned as a random model's keys are. The ridge makes it solvable.
RIDGE = 1e-2
WINDOW, SMALL_WINDOW = 5, 3
FEWER = {"ft-5": 2}  # a method's share of the facts: 1 / this


def edited_facts(n: int) -> list[ft.Fact]:
    """The sweep's facts, with a false target and as many prompts as a record of CounterFact has."""
    return [
        replace(
            fact,
            target_false="Paris",
            paraphrases=tuple(f"Some say that {fact.subject} is {where}" for where in ("in", "near")),
            neighborhood=tuple(f"The Bridge N{i} is in the city of" for i in range(10)),
        )
        for fact in made_facts(n)
    ]


def drawn_words(count: int, seed: int) -> list[str]:
    """Words of a vocabulary of 400."""
    return [f"w{i}" for i in np.random.default_rng(seed).integers(0, 400, count)]


def templates(method: str) -> list[str]:
    """The bare prompt, and the method's default number of prefixes: of 10 words, the first half of ROME's of 5."""
    count = known.METHODS[method].contexts or 0
    short = count // 2 if method == "rome" else 0
    prefixes = [" ".join(drawn_words(5 if i < short else 10, i)) for i in range(count)]
    return ["{}", *(f"{prefix} . {{}}" for prefix in prefixes)]


def row_name(method: str) -> str:
    """The method, with its number of contexts if it has any."""
    return f"{method}, {known.METHODS[method].contexts} contexts" if known.METHODS[method].solved else method


class Bench:
    """The model, its facts and second moments, and how calls are timed."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.facts = edited_facts(options.facts)
        sizes = (SMALL_LAYER, SMALL_TOKENS, SMALL_WINDOW) if options.small else (LAYER, TOKENS, WINDOW)
        self.layer, self.tokens, self.window = sizes
        text = " ".join(drawn_words(self.tokens, 20))
        (folder / "corpus.txt").write_text(text)
        contexts = [template for name in ("rome", "memit") for template in templates(name)]
        prompts = [text, "Paris", *contexts, *(p for f in self.facts for p in (*f.paraphrases, *f.neighborhood))]
        tokenizer = word_tokenizer(self.facts, prompts)
        self.model: Decoder = random_gptj(tokenizer, options.dtype, options.device, options.small)
        self.case = f"{self.model.name} {options.dtype}, layer {self.layer}"

    def timed(self, call: Callable[[], object], rounds: int = 1) -> BenchRow:
        """Seconds of `call`, and the peak of the GPU's memory during it, beside what was in use before."""
        cuda = self.model.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        row = seconds(call, rounds, warm=False)
        return {**row, "bytes": torch.cuda.max_memory_allocated() - before} if cuda else row

    def collected(self) -> Moments:
        """Second moments of the layers that the methods solve with, and of the layer itself."""
        windows = [window_of(name, self.layer, self.window, self.model.n_layers) for name in self.options.methods]
        solved = [w for name, w in zip(self.options.methods, windows, strict=True) if known.METHODS[name].solved]
        layers = sorted({self.layer, *(at for window in solved for at in window)})
        corpus = self.folder / "corpus.txt"
        return second_moments(
            self.model, corpus, tokens=self.tokens, layers=layers, ridge=RIDGE, cache_dir=self.folder / "cache"
        )

    def plan(self, method: str, moments: Moments) -> EditPlan:
        solved: dict[str, Any] = (
            {"moments": moments, "contexts": templates(method)} if known.METHODS[method].solved else {}
        )
        return prepare_edit(
            self.model,
            self.facts,
            method=method,
            layers=[self.layer],
            essence=0,
            window_size=self.window,
            **solved,
        )

    def edits(self, plan: EditPlan, count: int, **changed: Any) -> list[Edit]:
        """The unscored edits of the first `count` facts, in one batch. changed: hyperparameters."""
        plan = replace(plan, hyperparameters=replaced(plan.hyperparameters, **changed))
        with self.model.products():
            return plan.optimise([(fact, [self.layer]) for fact in plan.encoded[:count]])

    def score(self, plan: EditPlan, edits: list[Edit]) -> list[np.ndarray]:
        """The log-probabilities of every edited fact's prompts after its edit."""
        number = {fact.fact_id: i for i, fact in enumerate(plan.encoded)}
        prompts = [plan.prompts(fact) for fact in plan.encoded]
        with self.model.products():
            scorer = Scorer(self.model, prompts, [e.first_layer for e in edits])
            return [one.logp for one in scorer.after([(number[e.fact_id], e) for e in edits])]


def rate(row: BenchRow, edits: int) -> BenchRow:
    return {**row, "edits": edits, "seconds_an_edit": row["seconds"] / edits, "edits/s": edits / row["seconds"]}


def of_method(bench: Bench, name: str, moments: Moments) -> Iterator[BenchRow]:
    """Yield a method's rows: one edit, a batch of them, and their scoring."""
    plan, rounds = bench.plan(name, moments), bench.options.rounds
    row = {"benchmark": f"editing: {row_name(name)}", "impl": "fasttrace"}
    made: list[Edit] = []
    for count in sorted({1, max(1, len(bench.facts) // FEWER.get(name, 1))}):

        def edit(count: int = count) -> None:
            made.clear()  # so that no earlier result is in memory beside the new one
            made.extend(bench.edits(plan, count))

        # Not timed: every kernel is loaded or compiled for these sizes, in one step, and the factors of C are made.
        bench.edits(plan, count, steps=1)
        taken = bench.timed(edit, rounds)
        losses = [edit.loss for edit in made]
        yield {**row, "case": f"{bench.case}, batch of {count}", **rate(taken, count), "loss": float(np.mean(losses))}
    after: list[np.ndarray] = []
    bench.score(plan, made)
    taken = bench.timed(lambda: after.append(np.stack(bench.score(plan, made))), rounds)
    case = f"{bench.case}, batch of {len(made)}, {after[0].shape[1]} prompts each"
    p = float(np.exp(after[0][:, 0, 0]).mean())
    yield {**row, "benchmark": f"editing: scoring {name}", "case": case, **rate(taken, len(made)), "p_after": p}


def off(found: torch.Tensor, exact: torch.Tensor) -> float:
    """The distance of two δ, relative to the norm of `exact`."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def released_way(bench: Bench, moments: Moments) -> Iterator[BenchRow]:
    """Yield rows of one ROME edit in the released way: its time, and both ways' distance from it in a wider dtype.

    The last changes the model's dtype.
    """
    plan = bench.plan("rome", moments)
    [edit] = bench.edits(plan, 1)
    ours = edit.updates[bench.layer].value[0] * edit.denominator  # type: ignore[union-attr, operator]
    fact, found = plan.encoded[0], []
    contexts = contexts_of(bench.model, fact, plan.target_ids(fact), plan.contexts)

    def find() -> None:
        found.append(released.value(bench.model.hf, contexts, bench.layer, plan.hyperparameters))

    row = {"benchmark": f"editing: {row_name('rome')}", "case": f"{bench.case}, batch of 1"}
    yield {**row, "impl": "released", **rate(bench.timed(find), 1), "distance of δ": off(ours, found[0])}
    if bench.model.device.type == "cuda":
        torch.cuda.empty_cache()
    wider = WIDER[bench.options.dtype]
    bench.model.hf.to(getattr(torch, wider))
    find()
    yield {
        **row,
        "impl": f"released in {wider}",
        "fasttrace_off": off(ours, found[1]),
        "released_off": off(found[0], found[1]),
    }


def measured(options: argparse.Namespace, folder: Path) -> Iterator[BenchRow]:
    """Yield every row."""
    bench = Bench(options, folder)
    found: list[Any] = []
    taken = bench.timed(lambda: found.append(bench.collected()))
    moments: Moments = found[0]
    layers, m = len(moments.layers), bench.model.key_width
    case = f"{bench.case}, {layers} layers, m {m}, {moments.n_tokens} tokens"
    row = {"benchmark": "editing: second moments", "case": case, "impl": "fasttrace"}
    yield {**row, **taken, "tokens/s": moments.n_tokens / taken["seconds"]}

    keys = torch.randn(1, m, generator=torch.Generator().manual_seed(0)).to(bench.model.device)

    def solve() -> None:
        moments.inverse_key(bench.layer, keys)
        moments.condition(bench.layer)

    row = {"benchmark": "editing: first solve", "case": f"{bench.case}, m {m}", "impl": "fasttrace"}
    yield {**row, **bench.timed(solve), "condition": moments.condition(bench.layer)}
    for name in options.methods:
        yield from of_method(bench, name, moments)
    yield from released_way(bench, moments)


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=WIDER, required=True)
    parser.add_argument("--device", type=device, default=DEVICE)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--facts", type=positive, default=8, help="facts of a batch")
    parser.add_argument("--rounds", type=positive, default=1)
    parser.add_argument("--small", action="store_true", help="4 layers of 64 dimensions, to run anywhere")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.out is not None:
        check_file(options.out, makes_folder=True)
    rows: list[BenchRow] = []
    with tempfile.TemporaryDirectory() as folder:
        for row in measured(options, Path(folder)):
            rows.append(row)
            print(json.dumps(row, ensure_ascii=False), flush=True)
            write("gptj-edits", rows, about(options.device, ridge=RIDGE), options.out)
    # As in bench_gptj.py: both round, so neither is exact. NaN never passes.
    bound, found = 4 * rows[-1]["released_off"], rows[-1]["fasttrace_off"]
    if not found <= bound:
        sys.exit(f"δ: expected a distance of at most {bound:.1e} from the wider dtype's, got {found:.1e}")


if __name__ == "__main__":
    main()
