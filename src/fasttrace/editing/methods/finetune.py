"""Constrained fine-tuning (FT-1, FT-5): Adam on the down-projections of a window, with every weight within ± ε.

Each job has its own weights, stored as their change D = W − W0. The gradient of D is gᵀk, with g the gradient at the
down-projection's output rows and k its input rows. The backward pass stops at these two factors, and `adam_linf_` takes
the step from them without forming the matrix. Below the window nothing changes, so a step runs only the window and the
layers above it (docs/algorithms.md, section 15; Zhu et al. 2020, arXiv 2012.00363).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import isnan
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fasttrace.editing.delta import Dense, Edit, Update, as_rounded
from fasttrace.editing.wave import EditWave, Job, Span, Visited, walk
from fasttrace.facts import EncodedFact
from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Block
from fasttrace.models.corrupt import Corruption, Subject, embed_corrupted, own_place
from fasttrace.models.keys import Keys
from fasttrace.models.packed import pack, row_logprob
from fasttrace.ops.adam_linf import adam_linf_
from fasttrace.settings.methods import FineTuneSettings

NOISE_ROWS = 10  # noise samples that each forward draws in the released code's Fact Forcing
PATIENCE = 5  # losses below `early_stop` in a row that end the released loop


@dataclass(frozen=True)
class Example:
    """A fact to tune, and the ids of the target after its prompt."""

    fact: EncodedFact
    target: tuple[int, ...]


@dataclass(eq=False)
class _Tape:
    """The factors of a backward pass's gradients: (layer, first job) → (g (n, d), key (n, m), begin)."""

    factors: dict[tuple[int, int], tuple[Tensor, Tensor, np.ndarray]] = field(default_factory=dict)


class _ItemLinear(torch.autograd.Function):
    """y = k D_pᵀ (+ b_p) for the rows of each job p.

    The backward pass puts the factors of D's gradient on the tape and returns g D_p.
    """

    @staticmethod
    def forward(
        ctx: Any,
        key: Tensor,
        anchor: Tensor,
        D: Tensor,
        bias: Tensor | None,
        begin: np.ndarray,
        place: tuple[int, int],
        tape: _Tape,
    ) -> Tensor:
        ctx.key, ctx.D, ctx.begin, ctx.place, ctx.tape = key, D, begin, place, tape
        out = key.new_empty((key.shape[0], D.shape[1]), dtype=D.dtype)
        wide = key.to(D.dtype)
        for p, (first, past) in enumerate(pairwise(begin)):
            torch.mm(wide[first:past], D[p].T, out=out[first:past])
            if bias is not None:
                out[first:past] += bias[p]
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor, None, None, None, None, None]:
        g = g.contiguous()
        ctx.tape.factors[ctx.place] = g, ctx.key.detach(), ctx.begin
        below = None
        if ctx.needs_input_grad[0]:
            below = torch.empty((g.shape[0], ctx.D.shape[2]), dtype=g.dtype, device=g.device)
            for p, (first, past) in enumerate(pairwise(ctx.begin)):
                torch.mm(g[first:past], ctx.D[p], out=below[first:past])
            below = below.to(ctx.key.dtype)
        return below, g.new_zeros(()), None, None, None, None, None


class FineTuneBatch:
    """Jobs that are tuned together, in order of the first layers of their windows."""

    def __init__(
        self,
        model: Decoder,
        examples: Sequence[Example],
        jobs: Sequence[Job],
        corruption: Corruption | None = None,
    ) -> None:
        """jobs: `fact` is the index of a job's example."""
        self.model, self.examples, self.jobs = model, list(examples), list(jobs)
        self.corruption = corruption
        self.copies = NOISE_ROWS if corruption is not None and corruption.anew else 1
        ids = [[*e.fact.ids, *e.target[:-1]] for e in self.examples]
        for e, tokens in zip(self.examples, ids, strict=True):
            model.check_length(len(tokens), f"fact '{e.fact.fact_id}' with its target")
        self.batch = pack(model, [tokens for tokens in ids for _ in range(self.copies)])
        lengths = self.batch.lengths
        begin = np.cumsum(lengths) - lengths
        self.entry: dict[int, tuple[Tensor, Keys, Tensor]] = {}
        self._enter(0)
        spans: list[Span] = []
        targets: list[int] = []
        for number, (example, _, _) in enumerate(self.jobs):
            target = self.examples[example].target
            for row in range(example * self.copies, (example + 1) * self.copies):
                spans.append(Span(number, int(begin[row]), lengths[row], 0, 0, 0, len(target)))
                targets += target
        self.wave = EditWave(model, [window[0] for _, _, window in self.jobs], spans)
        self.targets = torch.tensor(targets, device=model.device)
        self.lengths = torch.bincount(self.wave.read_owner, minlength=len(self.jobs))
        # Jobs that share a window are consecutive and share one stack of changes per layer.
        self.groups: list[tuple[int, int, tuple[int, ...]]] = []
        for number, (_, _, window) in enumerate(self.jobs):
            if self.groups and self.groups[-1][2] == window:
                self.groups[-1] = (self.groups[-1][0], number + 1, window)
            else:
                self.groups.append((number, number + 1, window))

    def _enter(self, step: int) -> None:
        """Run the clean pass, or the corrupted one of a step, up to where the jobs' rows enter the wave."""
        subjects = [
            Subject(e.fact, e.fact.subject_begin, e.fact.subject_end)
            if self.copies == 1
            else own_place(e.fact, e.fact.subject_end, step * self.copies + row)
            for e in self.examples
            for row in range(self.copies)
        ]
        starts = {window[0] for _, _, window in self.jobs}

        def visit(seen: Visited) -> None:
            if seen.layer in starts:
                self.entry[seen.layer] = seen.resid_mid, seen.keys, seen.value

        with torch.no_grad():
            walk(self.model, self.batch, embed_corrupted(self.model, self.batch, subjects, self.corruption), visit)

    def optimise(self, settings: FineTuneSettings, *, minimise: bool = False, summed: bool = False) -> list[Edit]:
        """Run Adam for every job. The loss is the NLL per target token, or exp(−NLL) with `minimise`.

        summed: the loss is the NLL of the whole target in all rows, as in the released code.

        A job takes no step while its loss is below `early_stop`. After PATIENCE such losses in a row it is done, unless
        it minimises.

        Return the edits in the order of the jobs. The steps are float32. In a bfloat16 model the edit is the change
        that remains once weights are rounded (`delta.as_rounded`), which may exceed ε by half a step of bfloat16.
        """
        model, count = self.model, len(self.jobs)
        self.state: dict[tuple[int, int], _State] = {}
        for first, past, window in self.groups:
            for layer in window:
                block = model.blocks[layer]
                bias = settings.bias and block.down_bias is not None
                self.state[layer, first] = _State.zeros(past - first, block, bias)
        least = -torch.inf if settings.early_stop is None else settings.early_stop
        taken, low = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)
        last = torch.zeros(count)
        for step in range(settings.steps):
            if step and self.copies > 1:
                self._enter(step)
            tape = _Tape()
            nll = self._nll(tape) * (self.lengths if summed else 1)
            loss = torch.exp(-nll) if minimise else nll
            if settings.early_stop is None:
                last, steps = loss.detach().float(), torch.ones(count, dtype=torch.bool)  # nothing waits for the device
            else:
                done = (low >= PATIENCE) & (not minimise)
                last = torch.where(done, last, loss.detach().float().cpu())
                steps = ~done & (last >= least)
                low = torch.where(steps, 0, low + 1)
                if bool(done.all()) or (self.copies == 1 and not bool(steps.any())):
                    break  # the same weights and rows have the same loss
            taken += steps
            loss.sum().backward()
            for place, (g, key, begin) in tape.factors.items():
                jobs = slice(place[1], place[1] + len(begin) - 1)
                self.state[place].step(g, key, begin, taken[jobs], settings, steps[jobs])
        return self._edits(last.cpu())

    def _nll(self, tape: _Tape) -> Tensor:
        """(P,) −log p(target) per token. Its backward pass puts the gradients' factors on the tape."""
        model, wave = self.model, self.wave
        # Makes autograd run the backward of `_ItemLinear` even where the key needs no gradient.
        anchor = torch.zeros((), device=model.device, requires_grad=True)

        def changed(layer: int, keys: Keys, value: Tensor, first: int, past: int, begin: np.ndarray) -> Tensor:
            """value (n, d), plus the changes that jobs first … past − 1 make at this layer."""
            parts = []
            for a, b, window in self.groups:
                if not first <= a < past:
                    continue
                at, to = int(begin[a - first]), int(begin[b - first])
                if layer not in window:
                    parts.append(value[at:to])
                    continue
                state = self.state[layer, a]
                bounds = begin[a - first : b - first + 1] - begin[a - first]
                add = _ItemLinear.apply(
                    keys[at:to].of(), anchor.to(value.device), state.delta, state.bias, bounds, (layer, a), tape
                )
                parts.append((value[at:to] + add).to(value.dtype))
            return torch.cat(parts)

        def enter(layer: int, rows: Tensor, first: int, begin: np.ndarray) -> Tensor:
            resid_mid, keys, value = self.entry[layer]
            past = first + len(begin) - 1
            value = changed(layer, keys[rows], value[rows], first, past, begin)
            return resid_mid[rows] + model.blocks[layer].mlp_add(value)

        def change(layer: int, keys: Keys, value: Tensor, begin: np.ndarray) -> Tensor:
            past = len(begin) - 1
            if not any(layer in window for a, _, window in self.groups if a < past):
                return value
            return changed(layer, keys, value, 0, past, begin)

        logp = row_logprob(model, wave.run(enter, change), self.targets).to(model.device)
        total = torch.zeros(len(self.jobs), dtype=logp.dtype, device=logp.device)
        return -total.index_add(0, wave.read_owner, logp) / self.lengths

    def _edits(self, loss: Tensor) -> list[Edit]:
        updates: list[dict[int, Update]] = [{} for _ in self.jobs]
        largest = [0.0] * len(self.jobs)
        for at, block in self.model.layers(sorted({at for at, _ in self.state})):
            for first, past, window in self.groups:
                for number in range(first, past if at in window else first):
                    state = self.state[at, first]
                    bias = None
                    if state.bias is not None and block.down_bias is not None:
                        bias = as_rounded(block.down_bias, state.bias[number - first])
                    change = as_rounded(block.down, state.delta[number - first])
                    updates[number][at] = Dense(change, bias)
                    most = float(change.abs().max())
                    largest[number] = most if isnan(most) else max(largest[number], most)
        found = zip(self.jobs, updates, largest, loss.tolist(), strict=True)
        return [Edit(self.examples[job.fact].fact.fact_id, job.layer, *rest) for job, *rest in found]


@dataclass(eq=False)
class _State:
    """Weight changes and Adam's moments of some jobs at one layer: (P, d, m) float32, and (P, d) for biases."""

    delta: Tensor
    m: Tensor
    v: Tensor
    bias: Tensor | None
    bias_m: Tensor | None
    bias_v: Tensor | None

    @classmethod
    def zeros(cls, count: int, block: Block, bias: bool) -> "_State":
        """The initial state of `count` jobs at a block's down-projection."""
        (d, m), device = block.down_shape, block.device
        matrices = [torch.zeros((count, d, m), device=device) for _ in range(3)]
        vectors = [torch.zeros((count, d), device=device) if bias else None for _ in range(3)]
        return cls(*matrices, *vectors)

    def step(
        self, g: Tensor, key: Tensor, begin: np.ndarray, taken: Tensor, settings: FineTuneSettings, active: Tensor
    ) -> None:
        """One step of Adam and the clamp for the active jobs. g: (R, d), key: (R, m), begin: (P + 1,), active: (P,).

        taken: (P,), each job's number of steps with this one.
        """
        rows = torch.from_numpy(np.ascontiguousarray(begin))
        key = key if key.dtype == torch.bfloat16 else key.float()
        for step in taken[active].unique().tolist():
            mine = active & (taken == step)
            adam_linf_(self.delta, self.m, self.v, g, key, rows, step, settings.lr, settings.epsilon, active=mine)
            if self.bias is None or self.bias_m is None or self.bias_v is None:
                continue
            # A bias is a weight whose key is 1.
            ones = g.new_ones((g.shape[0], 1))
            parts = (self.bias[:, :, None], self.bias_m[:, :, None], self.bias_v[:, :, None])
            adam_linf_(*parts, g, ones, rows, step, settings.lr, settings.epsilon, active=mine)
