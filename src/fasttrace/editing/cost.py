"""The predicted cost of edits and of second moments: FLOPs from the shapes of the products, and the weights that Adam
updates."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from fasttrace.editing.corpus import SAMPLED_ROWS
from fasttrace.editing.essence import TOKENS
from fasttrace.editing.hyperparameters import window_of
from fasttrace.editing.methods.finetune import NOISE_ROWS
from fasttrace.editing.moments import Place, sum_bytes, width_of
from fasttrace.editing.scores import prompt_count
from fasttrace.facts import EncodedFact
from fasttrace.memory import size_text
from fasttrace.models.adapter import Decoder
from fasttrace.models.flops import ROWS, block_rate, linear_flops
from fasttrace.models.generate import sample_tokens
from fasttrace.ops import adam_linf_
from fasttrace.settings.methods import METHODS, FineTuneSettings, MethodSettings

ADAM_FLOPS = 200  # what an update of a weight by Adam takes, in FLOPs of a product that take as long
TRIED = 4  # tokens of the texts that are sampled to measure the rate


@dataclass(frozen=True)
class EditCost:
    """edits: number of edits. flops: FLOPs of the products with weights; a multiply and an add count one each. adam:
    number of weights that fine-tuning updates, times the number of steps."""

    edits: int = 0
    flops: float = 0.0
    adam: float = 0.0


def edit_cost(
    model: Decoder,
    facts: Sequence[EncodedFact],
    layers: Sequence[int],
    settings: MethodSettings,
    *,
    method: str,
    window_size: int,
    contexts: int,
    essence: int,
    anew: bool = False,
) -> EditCost:
    """Predict the work of editing every fact at every layer, assuming targets as long as o_true.

    A step of a method that optimises δ runs δ's layer and the layers above it, for the rows from the last subject token
    on. A step of fine-tuning runs the window and the layers above it, for all rows. Each step runs forward, and
    backward to the activations. Scoring an edit runs the window and the layers above it, for every prompt. The clean
    pass and the scores before the edit run all layers, once per fact.

    anew: whether every step draws new noise (the released code's Fact Forcing). Each step then has a clean pass of its
    own, and fine-tuning has NOISE_ROWS rows for every row.
    """
    flops = adam = 0.0
    for base, jobs in job_costs(
        model, facts, layers, settings, method, window_size=window_size, contexts=contexts, essence=essence, anew=anew
    ):
        flops += base + sum(of_job for of_job, _ in jobs)
        adam += sum(updates for _, updates in jobs)
    return EditCost(len(facts) * len(layers), flops, adam)


def job_costs(
    model: Decoder,
    facts: Sequence[EncodedFact],
    layers: Sequence[int],
    settings: MethodSettings,
    method: str,
    *,
    window_size: int,
    contexts: int,
    essence: int,
    anew: bool,
) -> Iterator[tuple[float, list[tuple[float, float]]]]:
    """Yield, for each fact, the FLOPs that its edits share, and (FLOPs, weights that Adam updates) of the edit at each
    layer. Arguments: those of `edit_cost`."""
    a_row = sum(sum(linear_flops(model, block)) for block in model.blocks) / model.n_layers
    a_logit = 2.0 * model.width * model.vocab_size
    tuned = isinstance(settings, FineTuneSettings)
    for fact in facts:
        extra = len(fact.target_true_ids)
        prompts = prompt_count(fact.fact)
        scored = prompts * (len(fact.ids) + 2 * extra) + essence * TOKENS
        logits = 2 * prompts * extra + essence * TOKENS
        copies = NOISE_ROWS if anew and tuned else 1
        sequences = copies if tuned else contexts + 2
        passes = settings.steps if anew else 1
        base = (passes * sequences * len(fact.ids) + scored) * model.n_layers * a_row + logits * a_logit
        jobs = []
        for layer in layers:
            window = window_of(method, layer, window_size, model.n_layers)
            entered = window[-1] if METHODS[method].spread else window[0]
            tail = len(fact.ids) + extra - 1 - (0 if tuned else fact.subject_end - 1)
            rows = copies * tail if tuned else (contexts + 1) * tail + 1
            seen = copies * extra if tuned else (contexts + 1) * extra + 1
            flops = settings.steps * 2 * (rows * (model.n_layers - entered) * a_row + seen * a_logit)
            flops += scored * (model.n_layers - window[0]) * a_row + logits * a_logit
            jobs.append((flops, settings.steps * len(window) * model.width * model.key_width if tuned else 0.0))
        yield base, jobs


def job_bytes(model: Decoder, layer: int, rows: int, tokens: int, matrices: int = 0) -> int:
    """Estimated bytes of one edit, at the larger of its two stages.

    layer: the layer at which optimising enters the model. rows: rows of its passes. tokens: tokens of the prompts that
    are scored. matrices: updates that are kept as matrices while they are computed.

    Optimising: the graph keeps about 12 d + 6 m numbers per row and layer, and fine-tuning, or what is done to an
    update afterwards, three float32 matrices per layer. Scoring: about 8 d + 3 m numbers per token.
    """
    d, m, size = model.width, model.key_width, model.embed_weight.element_size()
    above = max(1, model.n_layers - 1 - layer)
    return 12 * d * m * matrices + max(rows * above * (12 * d + 6 * m), tokens * (8 * d + 3 * m)) * size


@dataclass(frozen=True)
class MomentCost:
    """The cost of collecting second moments.

    layers: how many matrices. width: m, the largest. disk: bytes of their files. memory: bytes of the running sums
    where the model is (`sum_bytes`). passes: passes over the corpus. to_sample: tokens that are sampled first.
    sampling: FLOPs of that. flops: FLOPs of the passes. rows: rows times layers of the passes.
    """

    layers: int
    width: int
    disk: int
    memory: int
    passes: int
    to_sample: int
    sampling: float
    flops: float
    rows: int

    def seconds(self, model: Decoder) -> float:
        """The expected seconds at this machine's current rates: of a block, and of texts of a few tokens where text is
        to be sampled. To measure them takes a few hundredths of that time, if it is more than a second."""
        rows = min(ROWS, max(64, self.rows // 200))
        seconds = self.flops / block_rate(model, rows, 5)
        if self.to_sample:
            begun = time.perf_counter()
            sample_tokens(model, SAMPLED_ROWS, TRIED, seed=0)
            seconds += self.to_sample / (SAMPLED_ROWS * TRIED) * (time.perf_counter() - begun)
        return seconds

    def __str__(self) -> str:
        what = f"{self.layers} layer{'' if self.layers == 1 else 's'} of {self.width} × {self.width}"
        several = "" if self.passes == 1 else f" in each of {self.passes} passes"
        return f"{what}: {size_text(self.disk)} on disk, {size_text(self.memory)} of memory{several}"


def moment_cost(
    model: Decoder, groups: Sequence[Sequence[Place]], tokens: int, to_sample: int, itemsize: int = 4
) -> MomentCost:
    """Predict the work of collecting second moments in groups, each in a pass over `tokens` tokens.

    to_sample: number of tokens that the model samples first. itemsize: bytes of a number of the sums.
    """
    by_block = [sum(linear_flops(model, block)) for block in model.blocks]
    total = sum(width_of(model, place) ** 2 for group in groups for place in group)
    tops = [group[-1].layer + 1 for group in groups]
    flops = float(tokens) * (sum(sum(by_block[:top]) for top in tops) + total)
    sampling = float(to_sample) * (sum(by_block) + 2 * model.width * model.vocab_size)
    return MomentCost(
        sum(map(len, groups)),
        max((width_of(model, place) for group in groups for place in group), default=model.key_width),
        total * 4,
        max((sum(sum_bytes(model, place, itemsize) for place in group) for group in groups), default=0),
        len(groups),
        to_sample,
        sampling,
        flops,
        tokens * sum(tops),
    )


def adam_rate(model: Decoder) -> float:
    """Weights that fine-tuning's Adam updates per second: the median of five steps with factors of ten rows."""
    d, m, rows = model.width, model.key_width, 10
    delta, first, second = (torch.zeros(1, d, m, device=model.device) for _ in range(3))
    g, k = torch.randn(rows, d, device=model.device), torch.randn(rows, m, device=model.device)
    begin, times = torch.tensor([0, rows]), []
    for step in range(1, 7):
        begun = time.perf_counter()
        adam_linf_(delta, first, second, g, k, begin, step, 1e-3, 1e-3)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        times.append(time.perf_counter() - begun)
    return d * m / sorted(times[1:])[2]
