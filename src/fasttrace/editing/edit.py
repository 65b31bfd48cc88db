"""`edit`: many facts at many layers, optimised and scored in batches."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from fasttrace.editing.contexts import sample_contexts
from fasttrace.editing.delta import export_model
from fasttrace.editing.moments import DEFAULT_TOKENS, Moments, second_moments
from fasttrace.editing.problems import Problem, problem_named
from fasttrace.editing.rome import RankOne, RomeBatch, RomeSettings, contexts_of, rome_settings
from fasttrace.editing.scores import ScoredPrompt, score_edits, score_row, scored_prompts
from fasttrace.errors import UserError
from fasttrace.facts import EncodedFact, Fact, distinct, encode_fact
from fasttrace.models.adapter import Decoder
from fasttrace.runs import describe_run
from fasttrace.tracing.effects import check_protocol
from fasttrace.tracing.sweep import parse_bytes

METHODS = ("rome",)
DEFAULT_MEMORY = "1GB"
DEFAULT_CONTEXTS = 20  # 10 prefixes of 5 tokens and 10 of 10 (ALGORITHMS, section 4)

_EDIT = [
    ("fact_id", pa.string()),
    ("problem", pa.string()),
    ("method", pa.string()),
    ("layer", pa.int32()),
    ("window_size", pa.int32()),
]
_FOUR_P = [(name, pa.float64()) for name in ("p_before", "p_after", "p_true_before", "p_true_after")]
SCORES = pa.schema(
    [
        *_EDIT,
        *((name, pa.float64()) for name in ("rewrite", "paraphrase", "neighborhood", "essence", "overall")),
        *_FOUR_P,
        ("magnitude", pa.float64()),
        ("success", pa.bool_()),
        ("delta_norm", pa.float64()),
        ("denominator", pa.float64()),
        ("loss", pa.float64()),
    ]
)
PROMPTS = pa.schema(
    [*_EDIT, ("kind", pa.string()), ("prompt_index", pa.int32()), ("prompt", pa.string()), *_FOUR_P]
)


@dataclass(frozen=True, eq=False)
class EditResult:
    """run: the `runs` row. facts: what was edited. scores: SCORES, a row an edit. prompts: PROMPTS, a row a
    scored prompt of an edit. edits: the rank-one updates themselves."""

    run: dict[str, Any]
    facts: list[Fact]
    scores: pa.Table
    prompts: pa.Table
    edits: list[RankOne] = field(repr=False)
    model: Decoder = field(repr=False)

    def export(self, folder: str | Path, *, fact_id: str | None = None, layer: int | None = None) -> Path:
        """Write the model with one edit in its weights, as a folder that plain transformers loads.

        fact_id, layer: which edit, where the result holds several. Raises UserError where none or more than
        one fits, or the folder is not new.
        """
        mine = [e for e in self.edits if fact_id in (None, e.fact_id) and layer in (None, e.layer)]
        if len(mine) != 1:
            raise UserError(
                f"export: {len(mine)} edits fit fact_id={fact_id!r}, layer={layer!r}; exactly one was wanted"
            )
        return export_model(self.model, mine, folder)


@dataclass(frozen=True, eq=False)
class EditPlan:
    """Edits ready to be computed; `batches` computes them."""

    model: Decoder
    encoded: list[EncodedFact]
    problem: Problem
    layers: tuple[int, ...]
    window_size: int
    contexts: list[str]
    settings: RomeSettings
    moments: Moments
    protocol: str
    run: dict[str, Any]

    def batches(
        self,
        *,
        memory: str | int = DEFAULT_MEMORY,
        skip: frozenset[tuple[str, int]] | set[tuple[str, int]] = frozenset(),
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[EditResult]:
        """Results as they are finished. skip: (fact_id, layer) not to compute again. progress(n): n more edits."""
        todo = [
            (fact, [layer for layer in self.layers if (fact.fact.fact_id, layer) not in skip]) for fact in self.encoded
        ]
        for facts in self._groups([(f, layers) for f, layers in todo if layers], parse_bytes(memory)):
            begun = time.perf_counter()
            with self.model.products():
                edits = self._optimise(facts)
                result = self._score([f for f, _ in facts], edits)
            yield replace(result, run={**self.run, "seconds": time.perf_counter() - begun})
            if progress is not None:
                progress(len(edits))

    def _groups(
        self, todo: list[tuple[EncodedFact, list[int]]], memory: int
    ) -> Iterator[list[tuple[EncodedFact, list[int]]]]:
        """Facts whose problems fit into memory together; one fact's layers are split where they do not."""
        group: list[tuple[EncodedFact, list[int]]] = []
        used = 0
        for fact, layers in todo:
            part: list[int] = []
            for layer in layers:
                need = self._bytes(fact, layer)
                if used and used + need > memory:
                    if part:
                        group.append((fact, part))
                    yield group
                    group, part, used = [], [], 0
                part.append(layer)
                used += need
            if part:
                group.append((fact, part))
        if group:
            yield group

    def _bytes(self, fact: EncodedFact, layer: int) -> int:
        """Bytes the graph of one problem keeps for its backward pass: about 12 d and 6 m numbers a row and layer."""
        tail = len(fact.ids) - fact.subject_end + len(self.problem.target_ids(fact)) + 1
        rows = len(self.contexts) * tail + 1
        a_row = (12 * self.model.width + 6 * self.model.key_width) * self.model.embed_weight.element_size()
        return rows * a_row * max(1, self.model.n_layers - 1 - layer)

    def _optimise(self, facts: list[tuple[EncodedFact, list[int]]]) -> list[RankOne]:
        ready = [contexts_of(self.model, f, self.problem.target_ids(f), self.contexts) for f, _ in facts]
        problems = sorted(
            ((n, layer) for n, (_, layers) in enumerate(facts) for layer in layers), key=lambda x: (x[1], x[0])
        )
        batch = RomeBatch(self.model, ready, sorted({layer for _, layer in problems}))
        keys = torch.stack([batch.clean.mean_key[layer][fact] for fact, layer in problems]).float()
        u = torch.empty_like(keys)
        for layer in {layer for _, layer in problems}:
            here = [i for i, (_, at) in enumerate(problems) if at == layer]
            u[here] = self.moments.inverse_key(layer, keys[here]).to(u)
        delta, loss = batch.optimise(problems, self.settings)
        return batch.solve(problems, self.settings, delta, loss, u)

    def _score(self, facts: list[EncodedFact], edits: list[RankOne]) -> EditResult:
        number = {f.fact.fact_id: i for i, f in enumerate(facts)}
        prompts = [scored_prompts(self.model, f, self.problem) for f in facts]
        before, after = score_edits(self.model, prompts, [(number[e.fact_id], e) for e in edits])
        scores, rows = [], []
        for edit, p in zip(edits, after, strict=True):
            fact = number[edit.fact_id]
            name = {
                "fact_id": edit.fact_id,
                "problem": self.problem.name,
                "method": "rome",
                "layer": edit.layer,
                "window_size": self.window_size,
            }
            scores.append(
                {
                    **name,
                    **score_row(prompts[fact], before[fact], p, self.protocol),
                    "essence": None,
                    "delta_norm": edit.delta_norm,
                    "denominator": edit.denominator,
                    "loss": edit.loss,
                }
            )
            rows += [
                {**name, **_prompt_row(prompt, *before[fact][i], *p[i])} for i, prompt in enumerate(prompts[fact])
            ]
        return EditResult(
            self.run,
            [f.fact for f in facts],
            pa.Table.from_pylist(scores, schema=SCORES),
            pa.Table.from_pylist(rows, schema=PROMPTS),
            edits,
            self.model,
        )


def _prompt_row(prompt: ScoredPrompt, p: float, p_true: float, q: float, q_true: float) -> dict[str, object]:
    return {
        "kind": prompt.kind,
        "prompt_index": prompt.index,
        "prompt": prompt.text,
        "p_before": float(p),
        "p_after": float(q),
        "p_true_before": float(p_true),
        "p_true_after": float(q_true),
    }


def prepare_edit(
    model: Decoder,
    facts: Sequence[Fact],
    *,
    method: str = "rome",
    problem: str = "error-injection",
    layers: Sequence[int] | None = None,
    window_size: int = 5,
    protocol: str = "paper",
    seed: int = 0,
    moments: Moments | None = None,
    corpus: str | Path | None = None,
    corpus_tokens: int = DEFAULT_TOKENS,
    contexts: Sequence[str] | int = DEFAULT_CONTEXTS,
    progress: Callable[[str, int, int], None] | None = None,
    **overrides: Any,
) -> EditPlan:
    """Check every setting of a set of edits and fetch what they share (contexts, second moments).

    Arguments and errors: see `edit`; progress(stage, done, total) reports on the second moments.
    """
    check_protocol(protocol)
    model.check_resident("edit")
    if method not in METHODS:
        raise UserError(f"method '{method}' is not one of {', '.join(METHODS)}")
    chosen = problem_named(problem)
    if not facts:
        raise UserError("edit was given no facts, at least one was wanted")
    wanted = tuple(sorted(set(model.edit_layers() if layers is None else layers)))
    for layer in wanted:
        if not 0 <= layer < model.n_layers:
            raise UserError(f"layer {layer} is not in the model, 0 to {model.n_layers - 1} were wanted")
    if not wanted:
        raise UserError("edit was given no layers, at least one was wanted")
    if window_size < 1:
        raise UserError(f"window_size {window_size} is not a whole number from 1")
    settings = rome_settings(model, problem, protocol)
    unknown = set(overrides) - set(asdict(settings))
    if unknown:
        raise UserError(f"edit has no setting {', '.join(sorted(unknown))}; there are {', '.join(asdict(settings))}")
    settings = replace(settings, **overrides)
    if settings.key_mode not in ("rome", "r-rome"):
        raise UserError(f"key_mode '{settings.key_mode}' is neither 'rome' nor 'r-rome'")
    encoded = [encode_fact(model.tokenizer, fact) for fact in distinct(facts)]
    for fact in encoded:
        chosen.target_ids(fact)
    if isinstance(contexts, int):
        templates = sample_contexts(model, seed=seed, short=contexts // 2, long=contexts - contexts // 2)
    else:
        templates = list(contexts)
    if not templates or templates[0] != "{}":
        raise UserError("contexts must be a list that begins with the bare template '{}'")
    statistics = moments
    if statistics is None:
        statistics = second_moments(
            model, corpus, tokens=corpus_tokens, layers=list(wanted), seed=seed, progress=progress
        )
    described = {
        "method": method,
        "problem": problem,
        "window_size": window_size,
        "contexts": len(templates) - 1,
        "templates": templates,
        "moments": statistics.key,
        "corpus": statistics.source,
        "corpus_tokens": statistics.requested_tokens,
        "ridge": statistics.ridge,
        **asdict(settings),
    }
    run = describe_run("edit", model, described, seed=seed, protocol=protocol)
    return EditPlan(
        model, encoded, chosen, wanted, window_size, templates, settings, statistics, protocol, run
    )


def edit(
    model: Decoder,
    facts: Sequence[Fact],
    *,
    method: str = "rome",
    problem: str = "error-injection",
    layers: Sequence[int] | None = None,
    window_size: int = 5,
    protocol: str = "paper",
    seed: int = 0,
    moments: Moments | None = None,
    corpus: str | Path | None = None,
    corpus_tokens: int = DEFAULT_TOKENS,
    contexts: Sequence[str] | int = DEFAULT_CONTEXTS,
    memory: str | int = DEFAULT_MEMORY,
    progress: Callable[[int], None] | None = None,
    **overrides: Any,
) -> EditResult:
    """Edit every fact at every layer, each edit alone, and score it; the model's weights are not touched.

    method: "rome". problem: "error-injection" (maximise p(o_false)). layers: 0-based; default every fourth,
    the last and the model's own default. window_size: the tracing window the edits are compared with.
    protocol: "paper" or "released" (early stop, first paraphrase only, floors). seed: of the sampled
    contexts and of the default corpus. moments: second moments of the keys, else collected from corpus_tokens
    tokens of `corpus` (a text file, a folder, or None for text the model samples).
    contexts: how many sampled prefixes, half of 5 and half of 10 tokens, or prompt templates, "{}" first.
    memory: bytes for the graphs of the edits in flight. overrides: any field of RomeSettings (steps, lr,
    kl_factor, weight_decay, clamp, key_mode, early_stop).

    Returns an EditResult. Raises UserError for a bad setting, FactError for a fact without o_false.
    Source: paper, sections 3.3 and 3.4; ALGORITHMS, sections 4 and 6.
    """
    plan = prepare_edit(
        model,
        facts,
        method=method,
        problem=problem,
        layers=layers,
        window_size=window_size,
        protocol=protocol,
        seed=seed,
        moments=moments,
        corpus=corpus,
        corpus_tokens=corpus_tokens,
        contexts=contexts,
        **overrides,
    )
    parts = list(plan.batches(memory=memory, progress=progress))
    return EditResult(
        {**plan.run, "seconds": sum(p.run["seconds"] for p in parts)},
        [f.fact for f in plan.encoded],
        pa.concat_tables([SCORES.empty_table(), *(p.scores for p in parts)]),
        pa.concat_tables([PROMPTS.empty_table(), *(p.prompts for p in parts)]),
        [e for p in parts for e in p.edits],
        model,
    )
