"""ROME: one rank-one update of one down-projection, for many facts and layers in one graph.

For fact i at layer ℓ: ΔW = δ uᵀ / (uᵀk), with u = C⁻¹k*, k* the mean key over contexts at the last subject
token, and δ found by Adam on the MLP output there (ALGORITHMS, section 4). Optimising δ leaves everything
below ℓ and every token before the last subject token constant, so those are computed once: a step runs only
the tail tokens, only through the layers above, for every problem of the batch together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from fasttrace.facts import EncodedFact, Fact, encode_fact
from fasttrace.models.adapter import Block, Decoder
from fasttrace.models.packed import attend, embed, mix, pack, rotary_rows, row_logits, row_logprob
from fasttrace.ops.prefix_attention import Sequences


@dataclass(frozen=True)
class RomeSettings:
    """Hyperparameters of ROME (paper, Appendix A; ALGORITHMS, section 4).

    steps of Adam at lr on δ; loss = NLL + kl_factor · KL + weight_decay · ‖δ‖/‖v0‖²; ‖δ‖ ≤ clamp · ‖v0‖.
    key_mode: "rome" divides by uᵀ of the un-prefixed key, "r-rome" uses the averaged key everywhere.
    early_stop: a problem whose loss falls below it keeps its δ (released: 0.05; None: never).
    """

    steps: int = 20
    lr: float = 0.5
    kl_factor: float = 0.0625
    weight_decay: float = 0.5
    clamp: float = 4.0
    key_mode: str = "rome"
    early_stop: float | None = None


def rome_settings(model: Decoder, problem: str, protocol: str) -> RomeSettings:
    """Defaults for a model, problem and protocol."""
    settings = RomeSettings()
    if problem == "error-injection" and (model.config.model_type, model.n_layers) == ("gptj", 28):
        settings = replace(settings, kl_factor=1.0)
    if protocol == "released":
        settings = replace(settings, early_stop=0.05)
    return settings


@dataclass(frozen=True, eq=False)
class RankOne:
    """The update W += value keyᵀ of one layer's down-projection (d, m).

    value: (d,) = δ / (uᵀk). key: (m,) = u. delta_norm: ‖δ‖/‖v0‖. denominator: uᵀk with ‖u‖ = 1. loss: before
    the last update.
    """

    fact_id: str
    layer: int
    value: Tensor
    key: Tensor
    delta_norm: float
    denominator: float
    loss: float


@dataclass(eq=False)
class FactContexts:
    """One fact's sequences: each context, the un-prefixed one first, then "{subject} is a" cut after the subject.

    ids: token ids of each, target[:-1] appended to the contexts. last: index of the last subject token in each.
    target: (K,) ids.
    """

    fact: EncodedFact
    ids: list[list[int]]
    last: list[int]
    target: tuple[int, ...]


@dataclass(eq=False)
class Prefixes:
    """What one clean pass keeps of a batch of facts, for every step of the optimisation.

    keys, values: layer → (n_prefix, Hkv, hd) of the tokens before the last subject token, from the first
    edited layer on. entry: edited layer → (2, n_tail, d), the residual its MLP adds to and the MLP output.
    v0: edited layer → (facts, d) the MLP output at the un-prefixed last subject token. mean_value: the same,
    averaged over contexts. key, mean_key: edited layer → (facts, m). clean_kl: (facts, V) log-probabilities at
    the last token of "{subject} is a".
    """

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    entry: dict[int, Tensor] = field(default_factory=dict)
    v0: dict[int, Tensor] = field(default_factory=dict)
    mean_value: dict[int, Tensor] = field(default_factory=dict)
    key: dict[int, Tensor] = field(default_factory=dict)
    mean_key: dict[int, Tensor] = field(default_factory=dict)
    clean_kl: Tensor = field(default_factory=lambda: torch.zeros(0))


def contexts_of(model: Decoder, fact: EncodedFact, target: Sequence[int], contexts: Sequence[str]) -> FactContexts:
    """Encode a fact in every context template. contexts: the first is "{}"."""
    ids, last = [], []
    for template in contexts:
        prompt = template.replace("{}", fact.fact.prompt, 1)
        one = encode_fact(model.tokenizer, Fact(prompt, fact.fact.subject, fact.fact.target_true))
        ids.append([*one.ids, *target[:-1]])
        model.check_length(len(ids[-1]), f"fact '{fact.fact.fact_id}' in the context {template!r}")
        last.append(one.subject_end - 1)
    essence = encode_fact(model.tokenizer, Fact("{} is a", fact.fact.subject, fact.fact.target_true))
    ids.append(list(essence.ids[: essence.subject_end]))
    last.append(essence.subject_end - 1)
    return FactContexts(fact, ids, last, tuple(target))


class RomeBatch:
    """Some facts with their layers' problems: row numbers of prefixes and tails, and the clean pass."""

    def __init__(self, model: Decoder, facts: Sequence[FactContexts], layers: Sequence[int]) -> None:
        self.model, self.facts, self.layers = model, list(facts), sorted(layers)
        self.prefix_len = [last for f in facts for last in f.last]
        self.tail_len = [len(i) - last for f in facts for i, last in zip(f.ids, f.last, strict=True)]
        self.per_fact = [len(f.ids) for f in facts]
        self.clean = self._clean_pass()

    @torch.no_grad()
    def _clean_pass(self) -> Prefixes:
        model, kept = self.model, Prefixes()
        batch = pack(model, [ids for f in self.facts for ids in f.ids])
        begin = np.cumsum(batch.lengths) - batch.lengths
        prefix = np.concatenate([b + np.arange(n) for b, n in zip(begin, self.prefix_len, strict=True)])
        tail = np.concatenate(
            [b + p + np.arange(n) for b, p, n in zip(begin, self.prefix_len, self.tail_len, strict=True)]
        )
        prefix_rows, tail_rows = (torch.from_numpy(x).to(model.device) for x in (prefix, tail))
        last_rows = torch.from_numpy(begin + np.asarray(self.prefix_len)).to(model.device)
        h = embed(model, batch.ids, batch.positions)
        rotary = model.rotary(batch.positions)
        for layer, block in enumerate(model.blocks):
            if layer > self.layers[0]:
                k, v = block.key_value(block.attn_norm(h[prefix_rows]), rotary_rows(rotary, prefix_rows))
                kept.keys[layer], kept.values[layer] = k, v
            middle = h + attend(block, h, rotary, batch.sequences)
            key = block.mlp_key(block.mlp_norm(h if block.parallel else middle))
            value = block.mlp_value(key)
            h = middle + block.mlp_add(value)
            if layer in self.layers:
                kept.entry[layer] = torch.stack((middle[tail_rows], value[tail_rows]))
                # The last sequence of each fact is the KL prompt, which is no context of the key.
                at = [x[:-1] for x in torch.split(last_rows, self.per_fact)]
                kept.v0[layer] = torch.stack([value[x[0]] for x in at])
                kept.mean_value[layer] = torch.stack([value[x].mean(0) for x in at])
                kept.key[layer] = torch.stack([key[x[0]] for x in at])
                kept.mean_key[layer] = torch.stack([key[x].mean(0) for x in at])
        ends = [x[-1] for x in torch.split(last_rows, self.per_fact)]
        kept.clean_kl = self._log_probs(h[torch.stack(ends)])
        return kept

    def _log_probs(self, h: Tensor) -> Tensor:
        """h: (R, d) → (R, V) float32 log-probabilities, for the few rows of the KL term."""
        return row_logits(self.model, h).float().log_softmax(-1)

    def optimise(self, problems: Sequence[tuple[int, int]], settings: RomeSettings) -> tuple[Tensor, Tensor]:
        """Adam on δ for every (fact number, layer), problems in order of layer.

        Returns (δ (P, d) float32, each problem's last loss (P,)).
        """
        v0 = torch.stack([self._v0(layer, settings)[fact] for fact, layer in problems]).float()
        limit = settings.clamp * v0.norm(dim=1, keepdim=True)
        delta = torch.zeros_like(v0, requires_grad=True)
        adam = torch.optim.Adam([delta], lr=settings.lr)
        wave = _TailWave(self, problems)
        # A change at the last layer before the predicting token reaches no score: the loss is least at δ = 0, and
        # Adam would only magnify rounding noise.
        running = torch.tensor([self._reaches(*problem) for problem in problems], device=v0.device)
        last = torch.zeros(len(problems), device=v0.device)
        for step in range(settings.steps):
            nll, kl = wave.losses(delta)
            decay = delta.norm(dim=1) / v0.norm(dim=1).square()
            loss = nll + settings.kl_factor * kl + settings.weight_decay * decay
            last = torch.where(running | (step == 0), loss.detach(), last)
            if not bool(running.any()):
                break
            if settings.early_stop is not None:
                # The released loop also leaves out the update after its last loss.
                running = running & (last >= settings.early_stop) & (step + 1 < settings.steps)
                if not bool(running.any()):
                    break
            (delta.grad,) = torch.autograd.grad(loss.sum(), delta)
            before = delta.detach().clone()
            adam.step()
            with torch.no_grad():
                norm = delta.norm(dim=1, keepdim=True)
                delta.mul_(torch.where(norm > limit, limit / norm, torch.ones_like(norm)))
                delta.copy_(torch.where(running[:, None], delta, before))
        return delta.detach(), last

    def _reaches(self, fact: int, layer: int) -> bool:
        """Whether the MLP output at the last subject token of a layer can change the target's probability."""
        contexts = self.facts[fact]
        at_the_end = contexts.last[0] == len(contexts.ids[0]) - len(contexts.target)
        return layer < self.model.n_layers - 1 or at_the_end

    def _v0(self, layer: int, settings: RomeSettings) -> Tensor:
        return (self.clean.mean_value if settings.key_mode == "r-rome" else self.clean.v0)[layer]

    def solve(
        self, problems: Sequence[tuple[int, int]], settings: RomeSettings, delta: Tensor, loss: Tensor, u: Tensor
    ) -> list[RankOne]:
        """δ and directions u = C⁻¹k* (P, m) → the rank-one updates, in the order of the problems."""
        edits = []
        for row, (fact, layer) in enumerate(problems):
            direction = u[row].double() / u[row].double().norm()
            key = (self.clean.mean_key if settings.key_mode == "r-rome" else self.clean.key)[layer][fact]
            denominator = float(direction @ key.double())
            edits.append(
                RankOne(
                    self.facts[fact].fact.fact.fact_id,
                    layer,
                    (delta[row].double() / denominator).float(),
                    direction.float(),
                    float(delta[row].norm() / self._v0(layer, settings)[fact].float().norm()),
                    denominator,
                    float(loss[row]),
                )
            )
        return edits


class _TailWave:
    """The tails of a batch's problems, entering after their layer and running to the last, with gradients."""

    def __init__(self, batch: RomeBatch, problems: Sequence[tuple[int, int]]) -> None:
        self.batch, self.problems = batch, list(problems)
        device = batch.model.device
        offset = np.cumsum([0, *batch.per_fact])
        tail_begin = np.cumsum(batch.tail_len) - batch.tail_len
        prefix_begin = np.cumsum(batch.prefix_len) - batch.prefix_len
        rows, sequences, position, read, read_len = [], [], [], [], []
        nudged, kl_rows, scored, count, owner = [], [], [], [], []
        targets: list[int] = []
        row = 0
        self.entering: dict[int, tuple[int, int]] = {}
        for problem, (fact, layer) in enumerate(self.problems):
            first = row
            target = batch.facts[fact].target
            last = int(offset[fact + 1]) - 1
            for s in range(int(offset[fact]), int(offset[fact + 1])):
                n, p = batch.tail_len[s], batch.prefix_len[s]
                rows.append(tail_begin[s] + np.arange(n))
                sequences.append((row, n, prefix_begin[s], p, 0, 0, row, n))
                position.append(p + np.arange(n))
                nudged.append(row)
                count.append(problem)
                # Only these rows are read: where the target is predicted, and the KL prompt's one row.
                read_len.append(1 if s == last else len(target))
                at = sum(read_len[:-1])
                read.append(np.arange(row + n - read_len[-1], row + n))
                if s == last:
                    kl_rows.append(at)
                else:
                    scored.append(at + np.arange(len(target)))
                    targets += target
                    owner += [problem] * len(target)
                row += n
            begin, _ = self.entering.get(layer, (first, 0))
            self.entering[layer] = (begin, row)
        to = lambda x: torch.from_numpy(np.asarray(x)).to(device)  # noqa: E731
        self.tail_rows = to(np.concatenate(rows))
        self.sequences = np.asarray(sequences, dtype=np.int64)
        self.read, self.read_len = to(np.concatenate(read)), np.asarray(read_len, dtype=np.int64)
        self.rotary = batch.model.rotary(to(np.concatenate(position)))
        self.nudged, self.nudge_owner = to(nudged), to(count)
        self.kl_rows, self.scored = to(kl_rows), to(np.concatenate(scored))
        self.targets, self.owner = to(targets), to(owner)
        self.kl_fact = to([fact for fact, _ in self.problems])

    def losses(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """delta: (P, d) → (NLL (P,), KL (P,)), differentiable.

        NLL: −log p(target) per target token, mean over contexts. KL: of the edited against the unedited
        distribution after "{subject} is a" cut at the last subject token.
        """
        batch, model = self.batch, self.batch.model
        h: Tensor | None = None
        for layer in range(batch.layers[0], model.n_layers):
            block = model.blocks[layer]
            if h is not None:
                h = self._block(block, layer, h)
            if layer in self.entering:
                begin, end = self.entering[layer]
                middle, value = batch.clean.entry[layer][:, self.tail_rows[begin:end]]
                here = (self.nudged >= begin) & (self.nudged < end)
                nudge = delta.to(value.dtype)[self.nudge_owner[here]]
                value = value.index_add(0, self.nudged[here] - begin, nudge)
                entered = middle + block.mlp_add(value)
                if layer == model.n_layers - 1:
                    entered = entered[self.read[(self.read >= begin) & (self.read < end)] - begin]
                h = entered if h is None else torch.cat((h, entered))
        assert h is not None
        logp = row_logprob(model, h[self.scored], self.targets)
        total = torch.zeros(len(self.problems), device=delta.device).index_add(0, self.owner, logp)
        tokens = torch.bincount(self.owner, minlength=len(self.problems))
        now = batch._log_probs(h[self.kl_rows])
        kl = (now.exp() * (now - batch.clean.clean_kl[self.kl_fact])).sum(-1)
        return -total / tokens, kl

    def _block(self, block: Block, layer: int, h: Tensor) -> Tensor:
        n = h.shape[0]
        rotary = rotary_rows(self.rotary, slice(n))
        x = block.attn_norm(h)
        k, v = block.key_value(x, rotary)
        table = self.sequences[: int(np.searchsorted(self.sequences[:, 0], n))].copy()
        if layer == self.batch.model.n_layers - 1:
            # Past the last layer only the rows that are read matter, so only they are queries there.
            read, length = self.read[self.read < n], self.read_len[: len(table)]
            table[:, 0], table[:, 1] = np.cumsum(length) - length, length
            h, x = h[read], x[read]
            rotary = rotary_rows(rotary, read)
        q = block.query(x, rotary)
        table[:, 2] += n  # kept prefixes stand behind the tails
        keys = torch.cat((k, self.batch.clean.keys[layer]))
        values = torch.cat((v, self.batch.clean.values[layer]))
        middle = h + block.attn_out(mix(block, q, keys, values, Sequences(table)))
        return middle + block.mlp_add(block.mlp_value(block.mlp_key(block.mlp_norm(h if block.parallel else middle))))
