"""The engine of MEMIT, EMMET, AlphaEdit and PMET: a target z for the output of a window's last block (in PMET of its
MLP), which is spread over the window's down-projections.

Layer by layer from below, the method's solve (`editing.methods`) gives ΔW from K and R. R is the part of z that is
still missing, divided by the number of layers left (in PMET by its root). K contains the keys in the model whose lower
layers are already changed (docs/algorithms.md, section 14; Meng et al. 2022, arXiv 2210.07229, section 4).
"""

from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from fasttrace.editing.applied import edited_view
from fasttrace.editing.delta import Dense, Edit, LowRank, Update
from fasttrace.editing.methods.base import Past, PastKeys, Solve
from fasttrace.editing.value import FactContexts, ValueBatch
from fasttrace.editing.wave import At, Visited, walk
from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Block, Rotary
from fasttrace.models.corrupt import Corruption, Subject, embed_corrupted, own_place
from fasttrace.models.keys import Keys, by_owner
from fasttrace.models.packed import batches, bring, mix, pack, rotary_rows
from fasttrace.ops.prefix_attention import Sequences
from fasttrace.ops.rank_one_linear import rank_one_add_

PASS_ROWS = 4096  # tokens per pass over the contexts of many facts


@torch.no_grad()
def spread(
    batch: ValueBatch,
    facts: Sequence[int],
    layer: int,
    window: Sequence[int],
    solve: Solve,
    delta: Tensor,
    loss: Tensor,
) -> list[Edit]:
    """One edit per fact: a rank-one update at every layer of the window.

    Each fact is edited alone, so K is one column, and `Solve.alone` gives ΔW in float64. The missing part of z is δ
    minus the contribution of the layers below. At the first layer it is δ, bit for bit. If δ is 0, it is 0 at every
    layer.

    facts: their indices in the batch. layer: the layer that the edit was requested for. delta: (F, d). loss: (F,).
    """
    if batch.anew:
        return [_spread_anew(batch, fact, layer, window, solve, delta[i], loss[i]) for i, fact in enumerate(facts)]
    model = batch.model
    context = _ContextRows(batch, facts)
    h = batch.clean.start[window[0]]
    h = h[context.kept_rows.to(h.device)]
    v0, missing = batch.clean.v0[window[-1]][list(facts)].double(), delta.double()
    updates: list[dict[int, Update]] = [{} for _ in facts]
    for at, block in model.layers(window):
        device = block.device
        h = h.to(device)
        resid_mid, read, value = _until_value(block, h, context.rotary, context.sequences)
        experts = [batch.facts[fact].experts.get(at, ()) for fact in facts]
        key = read.of(by_owner(experts, context.owner.to(device)) if experts[0] else ())
        keys = context.mean(key[context.last.to(device)])
        if at > window[0]:
            reached = context.first_only(at, resid_mid, value, window[-1], solve.at)
            missing = torch.where(delta.any(1, keepdim=True), delta.double() - (reached.double() - v0), 0.0)
        residual = missing / solve.share(window[-1] - at + 1)
        scaled = solve.alone(at, keys, experts)
        for i in range(len(facts)):
            parts = residual[i].float()[None].to(device), scaled[i].float()[None]
            updates[i][at] = LowRank(*parts, experts=experts[i])
        wide = torch.promote_types(h.dtype, torch.float32)
        values = residual[:, None].to(device, wide)
        rank_one_add_(value, key, context.owner.to(device), scaled[:, None].to(wide), values)
        h = resid_mid + block.mlp_add(value)
    norms = delta.norm(dim=1) / v0.float().norm(dim=1)
    return [
        Edit(
            batch.facts[fact].fact.fact_id,
            layer,
            updates[i],
            float(norms[i]),
            float(loss[i]),
            None,
            solve.condition(layer, delta.device, batch.facts[fact].experts.get(layer, ())),
        )
        for i, fact in enumerate(facts)
    ]


def _spread_anew(
    batch: ValueBatch,
    fact: int,
    layer: int,
    window: Sequence[int],
    solve: Solve,
    delta: Tensor,
    loss: Tensor,
) -> Edit:
    """`spread` of one fact where every forward draws new noise: the released code's Fact Forcing.

    Its optimisation has one forward more than updates. Each layer then has one forward over the contexts for the key,
    and one over the bare prompt for what is missing.
    """
    own, corruption, top = batch.facts[fact], batch.corruption, window[-1]
    heads = [tokens[: last + 1] for tokens, last in zip(own.ids[:-1], own.last[:-1], strict=True)]
    drawn = batch.drawn_before(solve.settings.steps + 1)(own)
    z = batch.clean.v0[top][fact].double() + delta.double()
    updates: dict[int, Update] = {}
    for at in window:
        view = edited_view(batch.model, updates)
        places = [own_place(own.fact, len(head), drawn + i) for i, head in enumerate([*heads, heads[0]])]
        experts = own.experts.get(at, ())
        key = mean_key(_at_last_tokens(view, heads, places[:-1], corruption, at, solve.at, experts)[0])[None]
        reached = _at_last_tokens(view, heads[:1], places[-1:], corruption, top, solve.at)[1][0].double()
        residual = (z - reached) / solve.share(top - at + 1) if bool(delta.any()) else torch.zeros_like(z)
        device = batch.model.blocks[at].device
        scaled = solve.alone(at, key, [experts]).float().to(device)
        updates[at] = LowRank(residual.float()[None].to(device), scaled, experts=experts)
        drawn += len(places)
    norm = float(delta.norm() / batch.clean.v0[top][fact].float().norm())
    condition = solve.condition(layer, delta.device, own.experts.get(layer, ()))
    return Edit(own.fact.fact_id, layer, updates, norm, float(loss), None, condition)


def _at_last_tokens(
    model: Decoder,
    sequences: Sequence[Sequence[int]],
    subjects: Sequence[Subject | None],
    corruption: Corruption | None,
    layer: int,
    where: At,
    experts: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """(keys (S, m), `Visited.output` (S, d)) at a layer and the last token of each sequence, on the model's device.

    experts: whose keys, at a layer with experts; none for the output alone, whose keys are then empty.
    """
    lower = edited_view(model, {})
    lower.blocks = model.blocks[: layer + 1]
    packed = pack(model, sequences)
    found: list[tuple[Tensor, Tensor]] = []

    def visit(seen: Visited) -> None:
        if seen.layer == layer:
            last = packed.last_rows.to(seen.value.device)
            found.append((seen.keys[last].of(experts), seen.output(where)[last]))

    walk(lower, packed, embed_corrupted(model, packed, subjects, corruption), visit)
    [(key, output)] = found
    return key.to(model.device), output.to(model.device)


def mean_key(keys: Tensor) -> Tensor:
    """keys: (contexts, m), the un-prefixed one first → (m,) float64, their mean. That one has half of the weight.

    Source: the code of Meng et al. 2022 (arXiv 2210.07229), which averages each kind of context by itself, and then the
    two means.
    """
    keys = keys.double()
    return keys[0] if len(keys) == 1 else 0.5 * (keys[0] + keys[1:].mean(0))


class _ContextRows:
    """The contexts of some facts up to the last subject token, packed, as they run through a window's blocks."""

    def __init__(self, batch: ValueBatch, facts: Sequence[int]) -> None:
        self.model = batch.model
        device = self.model.device
        sizes = [len(rows) for rows in batch.context_rows]
        offset = [sum(sizes[:i]) for i in range(len(sizes))]
        self.kept_rows = torch.cat([torch.arange(offset[f], offset[f] + sizes[f]) for f in facts]).to(device)
        lengths = [[int(batch.prefix_len[s]) + 1 for s in batch.contexts(f)] for f in facts]
        flat = [n for per_fact in lengths for n in per_fact]
        self.counts = [len(per_fact) for per_fact in lengths]
        self.owner = torch.repeat_interleave(
            torch.arange(len(facts)), torch.tensor([sum(per_fact) for per_fact in lengths])
        ).to(device)
        self.sequences = Sequences.whole(flat)
        self.last = (torch.tensor(flat).cumsum(0) - 1).to(device)
        self.rotary = self.model.rotary(torch.cat([torch.arange(n) for n in flat]).to(device))
        # The first context of each fact is the un-prefixed one.
        begin = torch.tensor(flat).cumsum(0) - torch.tensor(flat)
        number = torch.tensor(self.counts).cumsum(0) - torch.tensor(self.counts)
        first = [torch.arange(int(begin[s]), int(begin[s]) + flat[s]) for s in number.tolist()]
        self.bare_rows = torch.cat(first).to(device)
        bare = [len(rows) for rows in first]
        self.bare_sequences = Sequences.whole(bare)
        self.bare_last = (torch.tensor(bare).cumsum(0) - 1).to(device)

    def mean(self, rows: Tensor) -> Tensor:
        """rows: (contexts, m) → (facts, m), each fact's `mean_key`."""
        return torch.stack([mean_key(part) for part in torch.split(rows, self.counts)])

    def first_only(self, layer: int, resid_mid: Tensor, value: Tensor, top: int, where: At) -> Tensor:
        """(facts, d), the output of block `top`, or of its MLP, without edits from `layer` on.

        It is that at the last subject token of the un-prefixed context, on the model's device.

        resid_mid, value: (N, d), those of block `layer`, which is brought. where: "block" gives the block's output,
        else the MLP's.
        """
        rotary, rows = rotary_rows(self.rotary, self.bare_rows), self.bare_rows.to(value.device)
        resid_mid, value = resid_mid[rows], value[rows]
        h = resid_mid + self.model.blocks[layer].mlp_add(value)
        for _, block in self.model.layers(range(layer + 1, top + 1)):
            resid_mid, _, value = _until_value(block, h.to(block.device), rotary, self.bare_sequences)
            h = resid_mid + block.mlp_add(value)
        reached = h if where == "block" else value
        return reached[self.bare_last.to(reached.device)].to(self.model.device)


def _until_value(block: Block, h: Tensor, rotary: Rotary, sequences: Sequences) -> tuple[Tensor, Keys, Tensor]:
    """Run a block up to its MLP's output. h: (N, d) on its device → (resid_mid (N, d), keys, value (N, d))."""
    rotary = bring(rotary, block.device)
    x = block.attn_norm(h)
    k, v = block.key_value(x, rotary)
    resid_mid = h + block.attn_out(mix(block, block.query(x, rotary), k, v, sequences))
    return resid_mid, *block.keys_and_value(block.mlp_norm(h if block.parallel else resid_mid))


@torch.no_grad()
def spread_together(
    model: Decoder,
    facts: Sequence[FactContexts],
    corruption: Corruption | None,
    window: Sequence[int],
    solve: Solve,
    v0: Tensor,
    delta: Tensor,
    past: Past,
    experts: Mapping[int, tuple[int, ...]],
) -> tuple[dict[int, Dense], dict[int, PastKeys], dict[int, float]]:
    """layer → one update for all facts together, layer → the keys of earlier edits and these, and layer → the condition
    number of its solve.

    The target of each fact is z = v0 + δ. The solves are float64.

    v0, delta: (F, d), at the window's last layer. past: the keys of earlier edits. experts: layer → those that are
    changed there, whichever fact asks for them, at layers that have any.
    Raises UserError where a solve is singular.
    """
    updates: dict[int, Dense] = {}
    kept: dict[int, PastKeys] = {}
    conditions: dict[int, float] = {}
    for at in window:
        # Without a change below, the output is v0 itself. Computed again, it might round differently.
        edited = any(update.changes() for update in updates.values())
        view, top = edited_view(model, updates), window[-1] if edited else at
        own = experts.get(at, ())
        keys, reached = _keys_and_values(view, facts, corruption, at, top, solve.at, own)
        moved = reached.double() - v0.double() if edited else 0.0
        residual = (delta.double() - moved) / solve.share(window[-1] - at + 1)
        earlier = past.get(at)
        solved = solve.together(at, keys, earlier, own)
        conditions[at] = solved.condition
        updates[at] = Dense((residual.T @ solved.rows).float().to(model.blocks[at].device), experts=own)
        kept[at] = (earlier or PastKeys.none(keys, own)).with_keys(keys.double(), solved.moved)
    return updates, kept, conditions


def _keys_and_values(
    model: Decoder,
    facts: Sequence[FactContexts],
    corruption: Corruption | None,
    layer: int,
    top: int,
    where: At,
    experts: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """(`mean_key` (F, m) at `layer`, `Visited.output` (F, d) at `top`) of the facts in this model, on its device."""
    keys: list[Tensor] = []
    reached: list[Tensor] = []
    lower = edited_view(model, {})
    lower.blocks = model.blocks[: top + 1]
    heads = [[tokens[: last + 1] for tokens, last in zip(f.ids[:-1], f.last[:-1], strict=True)] for f in facts]
    for part in batches([list(chain(*rows)) for rows in heads], PASS_ROWS):
        packed = pack(model, [tokens for rows in heads[part] for tokens in rows])
        counts = [len(rows) for rows in heads[part]]
        last = torch.split(packed.last_rows, counts)

        def visit(seen: Visited, last: Sequence[Tensor] = last, counts: list[int] = counts) -> None:
            if seen.layer == layer:
                read = seen.keys[torch.cat(list(last)).to(seen.value.device)].of(experts)
                keys.extend(mean_key(own) for own in torch.split(read, counts))
            if seen.layer == top:
                reached.extend(seen.output(where)[rows[0].to(seen.value.device)] for rows in last)

        subjects = [subject for f in facts[part] for subject in f.subjects()[:-1]]
        walk(lower, packed, embed_corrupted(model, packed, subjects, corruption), visit)
    return torch.stack(keys).to(model.device), torch.stack(reached).to(model.device)
