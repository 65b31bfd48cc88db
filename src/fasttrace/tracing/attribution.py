"""Attribution patching: every cell of a grid estimated to first order from one forward and one backward pass.

An exact cell costs a forward of its own, but its slope does not. To first order, adding (clean − corrupted) to a
module's output changes p(o_true) by the inner product of that difference with ∂p / ∂output. One backward pass gives
that gradient at every layer, token and sample. The estimates screen cells; they do not replace the sweep.

The change of a window is the sum of its layers' changes, as if they did not affect one another. In the exact cell, too,
a restored output is fixed and does not respond to the restored outputs below it. For "block" the sum would count one
residual once per layer. There a window is estimated by its last layer, whose restoration overwrites the token's
residual from the layers below. The estimate omits what later tokens read of those layers through attention inside the
window.

For attention heads, the output is the slice of the head before the output projection, and so is the gradient.

The estimate of p is linear in p, not in log p. That of the logit difference is linear in the logit difference, whose
gradient takes a backward pass of its own. Over 36 grids of 16 facts in SmolLM2-135M both rank cells equally well (mean
Spearman 0.743 and 0.739), but exp of a slope overshoots, and clipping it at 1 makes the best cells tie.

The forward keeps each layer's input. The backward goes down the layers and recomputes the graph of each from it. So the
activations of at most one layer are kept, each layer's weights are read twice, and the forward can use the compiled
kernels, which have no gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fasttrace.errors import UserError
from fasttrace.memory import pack_by_budget
from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Rotary
from fasttrace.models.corrupt import embed_base
from fasttrace.models.packed import bring, head_outputs, mlp, row_logprob
from fasttrace.models.readout import token_logits
from fasttrace.ops.prefix_attention import Column, Sequences
from fasttrace.tracing.measures import LOGIT_DIFF, LOGPROB, MEASURES, P, measures
from fasttrace.tracing.plan import MODULES, Cell, Intervention, Layout, TraceItem, TraceWave

MEMORY_ROWS = 4096


@dataclass(eq=False)
class AttributionResult:
    """What was measured and estimated, by number of the item. M is the number of MEASURES, n of the corrupted passes.

    clean: (M, 1). noised: (M, n). estimates: cell → (M, n), NaN but for p, its logarithm and the estimated metric. An
    estimated p is in [0, 1].
    """

    clean: dict[int, np.ndarray] = field(default_factory=dict)
    noised: dict[int, np.ndarray] = field(default_factory=dict)
    estimates: dict[int, dict[Cell, np.ndarray]] = field(default_factory=dict)


def row_bytes(model: Decoder) -> int:
    """Bytes of a base row: a residual and a difference per layer, and the graph of one layer (about 12 d + 6 m)."""
    graph = 12 * model.width + 6 * model.key_width
    return (2 * model.n_layers * model.width + graph) * model.embed_weight.element_size()


def attribute(
    model: Decoder,
    items: Sequence[TraceItem],
    sigma: float,
    noise: str,
    seed: int,
    module: str = "mlp",
    memory_rows: int = MEMORY_ROWS,
    *,
    logit_diff: bool = False,
) -> AttributionResult:
    """Estimate p(o_true) of every cell of every item, per corrupted pass.

    sigma, noise, seed: see `embed_base`; the noise is that of the exact sweep.
    module: "mlp" or "attn" (what that module adds to the residual), "block" (the residual after the block), or "head"
        (a head's output before the output projection).
    memory_rows: the most base rows that share one forward and one backward pass. An item is never split.
    logit_diff: whether to estimate the logit difference, too, of the items that have a contrast.

    Raises UserError for an unknown module and for an item with more than memory_rows rows.
    Source: Nanda 2023, "Attribution patching"; Kramár et al. 2024 (arXiv 2403.00745), section 2.
    """
    if module not in MODULES:
        raise UserError(f"attribution: module: expected one of {', '.join(MODULES)}, got '{module}'")
    for item in items:
        if (rows := item.base_rows()) > memory_rows:
            raise UserError(
                f"memory: expected a budget of at least {rows} rows for fact '{item.encoded.fact_id}', "
                f"got {memory_rows}; use a larger --memory or fewer samples"
            )
    result = AttributionResult()
    for numbers in pack_by_budget(range(len(items)), lambda i: items[i].base_rows(), memory_rows):
        base = _BaseRows([items[i] for i in numbers], model)
        found, slopes, diff_slopes = _slopes(model, base, sigma, noise, seed, module, logit_diff)
        for place, number in enumerate(numbers):
            _estimate(result, number, found, slopes, diff_slopes, base, place, module)
    return result


class _BaseRows:
    """Base rows of a batch, corrupted rows first because only they are differentiated.

    order: (N,) the base row (as `embed_base` numbers them) at each place; the first n_corrupted are corrupted.
    table: (S, 8) every sequence; the first n_noised are corrupted. twin: (n_corrupted,) the place of the clean row of
    the same token. first: (items,) the number of each item's first corrupted sequence. scored, targets, sequence: (R,)
    the rows that predict a target token, that token, and its sequence. compared: (S,) the place among these of the row
    whose distribution is compared. sees: (items,) as `TraceItem.sees_corruption`.
    """

    def __init__(self, items: Sequence[TraceItem], model: Decoder) -> None:
        self.items = list(items)
        self.sees = [item.sees_corruption(model) for item in items]
        wave = TraceWave([(i, []) for i in range(len(items))], sum(item.base_rows() for item in items))
        base = Layout(model, items, wave, Intervention()).sequences
        runs = np.array([item.corrupted for item in items])
        is_clean = np.isin(np.arange(len(base)), np.cumsum(1 + runs) - (1 + runs))
        noised, clean = base[~is_clean], base[is_clean]
        tails = [Column.K_BEGIN, Column.K_LEN]
        rows = [np.concatenate([np.arange(r, r + n) for r, n in part[:, tails].tolist()]) for part in (noised, clean)]
        self.order = np.concatenate(rows)
        self.n_corrupted = len(rows[0])
        place = np.empty_like(self.order)
        place[self.order] = np.arange(len(self.order))
        self.table = np.concatenate((noised, clean))
        for column in (Column.Q_BEGIN, Column.FIRST_BEGIN, Column.K_BEGIN):
            self.table[:, column] = place[self.table[:, column]]
        self.n_noised = len(noised)
        self.first = np.cumsum(runs) - runs
        first_token = np.repeat([item.passes.begin for item in self.items], runs)
        clean_begin = np.repeat(clean[:, Column.K_BEGIN], runs)
        self.twin = np.concatenate(
            [
                np.arange(n) + place[begin] + b
                for n, begin, b in zip(noised[:, Column.K_LEN], clean_begin, first_token, strict=True)
            ]
        )
        # Each sequence's last K rows predict the target's K tokens.
        self.owner = np.concatenate((np.repeat(np.arange(len(items)), runs), np.arange(len(items))))
        count = np.array([len(item.targets) for item in items])[self.owner]
        ends = self.table[:, Column.K_BEGIN] + self.table[:, Column.K_LEN]
        self.scored = np.concatenate([np.arange(end - k, end) for end, k in zip(ends, count, strict=True)])
        self.targets = np.concatenate([self.items[i].targets for i in self.owner])
        self.sequence = np.repeat(np.arange(len(self.owner)), count)
        self.compared = np.cumsum(count) - count + np.array([item.compared_at for item in items])[self.owner]

    @property
    def contrasted(self) -> np.ndarray:
        """(S,) bool, whether o_true and o_false of the sequence's item differ."""
        return np.array([item.contrast is not None for item in self.items])[self.owner]

    @property
    def contrasts(self) -> np.ndarray:
        """(S, 3) the scored token of the compared row, o_true's and o_false's there; zeros without a contrast."""
        three = [(0, 0, 0) if i.contrast is None else (i.targets[i.contrast.at], *i.contrast[1:]) for i in self.items]
        return np.array(three)[self.owner]


def _slopes(
    model: Decoder, rows: _BaseRows, sigma: float, noise: str, seed: int, module: str, logit_diff: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(measures of every sequence of rows.table (M, S), ⟨∂ log p / ∂ output, clean − corrupted⟩ (L, n_corrupted, H),
    and the same of the logit difference or None). H is the number of heads for module "head", else 1."""
    to = lambda array, device: torch.from_numpy(np.ascontiguousarray(array)).to(device)  # noqa: E731
    n, order = rows.n_corrupted, to(rows.order, model.device)
    kept: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        with model.entry():
            x, positions = embed_base(model, [item.passes for item in rows.items], sigma, noise, seed)
            positions = positions[order]
            h = model.enter(x[order], positions)
        rotary = model.rotary(positions)
        sequences = Sequences(rows.table)
        for _, block in model.layers():
            h, rotary = h.to(block.device), bring(rotary, block.device)
            z = head_outputs(block, h, rotary, sequences)
            added = block.attn_out(z)
            resid_mid = h + added
            out = mlp(block, h if block.parallel else resid_mid)
            resid_post = resid_mid + out
            output = {"mlp": out, "attn": added, "block": resid_post, "head": z}[module]
            kept.append((h, output[to(rows.twin, h.device)] - output[:n]))
            h = resid_post
    with torch.enable_grad():
        last = h.detach().requires_grad_()
        each = row_logprob(model, last[to(rows.scored, h.device)], to(rows.targets, h.device))
        log_p = torch.zeros(len(rows.table), dtype=each.dtype, device=each.device)
        log_p = log_p.index_add(0, to(rows.sequence, each.device), each)
        # A sample's log p depends on its own rows only, so the gradient of the sum holds every sample's gradient.
        gradients = [torch.autograd.grad(log_p[: rows.n_noised].sum(), last)[0][:n]]
        contrasted, logits = rows.contrasted, None
        if contrasted.any():
            at = last[to(rows.scored[rows.compared[contrasted]], h.device)]
            logits = token_logits(model, at, to(rows.contrasts[contrasted], h.device))
            if logit_diff:
                noised = int(contrasted[: rows.n_noised].sum())
                gradients.append(torch.autograd.grad((logits[:noised, 1] - logits[:noised, 2]).sum(), last)[0][:n])
        slopes = _backward(model, rows, kept, rotary, gradients, module)
    first = np.flatnonzero(np.diff(rows.sequence, prepend=-1))
    as_array = lambda tensor: tensor.detach().double().cpu().numpy()  # noqa: E731
    found = measures(
        as_array(each), first, rows.compared, contrasted, None if logits is None else as_array(logits), None
    )
    return found, slopes[0], slopes[1] if len(slopes) > 1 else None


def _backward(
    model: Decoder,
    rows: _BaseRows,
    kept: list[tuple[Tensor, Tensor]],
    rotary: Rotary,
    gradients: list[Tensor],
    module: str,
) -> list[np.ndarray]:
    """Each gradient at the last layer's output → its slopes, as `_slopes` returns them. kept: input and difference of
    every layer, which are dropped as they are used."""
    n, corrupted = rows.n_corrupted, Sequences(rows.table[: rows.n_noised])
    parts = model.blocks[0].n_heads if module == "head" else 1
    slopes = [np.empty((model.n_layers, n, parts)) for _ in gradients]
    for layer, block in model.layers(reversed(range(model.n_layers))):
        h, difference = kept.pop()
        rotary = bring(rotary, h.device)
        resid_pre = h[:n].requires_grad_()
        queries = torch.arange(n, device=h.device)
        z = head_outputs(block, torch.cat((resid_pre, h[n:])), rotary, corrupted, queries)
        added = block.attn_out(z)
        resid_mid = resid_pre + added
        resid_post = resid_mid + mlp(block, resid_pre if block.parallel else resid_mid)
        for number, gradient in enumerate(gradients):
            gradient = gradient.to(h.device)
            at_input, at_added, at_heads = torch.autograd.grad(
                resid_post, (resid_pre, added, z), gradient, retain_graph=number + 1 < len(gradients)
            )
            at_output = {"attn": at_added, "head": at_heads}.get(module, gradient)
            wide = torch.promote_types(at_output.dtype, torch.float32)
            product = at_output.to(wide) * difference.to(wide)
            slopes[number][layer] = product.view(n, parts, -1).sum(2).double().cpu().numpy()
            gradients[number] = at_input
    return slopes


def _estimate(
    result: AttributionResult,
    number: int,
    found: np.ndarray,
    slopes: np.ndarray,
    diff_slopes: np.ndarray | None,
    rows: _BaseRows,
    place: int,
    module: str,
) -> None:
    """Add the measures and estimates of one item to the result."""
    item, sees = rows.items[place], rows.sees[place]
    n, begin = item.corrupted, rows.first[place]
    result.clean[number] = clean = found[:, rows.n_noised + place, None]
    result.noised[number] = noised = found[:, begin : begin + n] if sees else clean.repeat(n, 1)
    starts = rows.table[begin : begin + n, Column.K_BEGIN]
    estimates: dict[Cell, np.ndarray] = {}
    for cell in item.cells:
        layers = slice(cell.stop - 1 if module == "block" else cell.start, cell.stop)
        head, at = cell.heads.first, starts + cell.token - item.passes.begin
        change = slopes[layers, at, head].sum(0) if sees else 0.0
        guess = np.full((len(MEASURES), n), np.nan)
        # ∂p = p ∂ log p
        guess[P] = np.clip(noised[P] * (1.0 + change), 0.0, 1.0)
        guess[LOGPROB] = np.minimum(noised[LOGPROB] + change, 0.0)
        if diff_slopes is not None:
            guess[LOGIT_DIFF] = noised[LOGIT_DIFF] + (diff_slopes[layers, at, head].sum(0) if sees else 0.0)
        estimates[cell] = guess
    result.estimates[number] = estimates


def rank_correlation(estimated: np.ndarray, exact: np.ndarray) -> float | None:
    """Spearman's rank correlation of two grids of one shape, or None for fewer than 3 cells or a constant grid."""
    a, b = np.asarray(estimated, dtype=np.float64).reshape(-1), np.asarray(exact, dtype=np.float64).reshape(-1)
    if len(a) < 3 or np.ptp(a) == 0.0 or np.ptp(b) == 0.0:
        return None
    from scipy.stats import spearmanr  # imported here, because a GPU machine without scipy can still trace

    return float(spearmanr(a, b).statistic)
