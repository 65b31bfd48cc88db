"""The vector δ that the methods with keys optimise: added at the last subject token, it gives the target.

Adam finds δ for all jobs (fact, layer) of a batch in one graph. Everything below the layer and every token before the
last subject token is constant over all steps and is computed once. So a step runs only the tail tokens, and only
through the layers above (docs/algorithms.md, sections 12 and 17).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fasttrace.editing.wave import At, EditWave, Span, Visited, walk
from fasttrace.errors import shown
from fasttrace.facts import EncodedFact, Fact, encode_fact
from fasttrace.models.adapter import Decoder
from fasttrace.models.corrupt import Corruption, Subject, embed_corrupted, own_place
from fasttrace.models.packed import pack, row_logits, row_logprob
from fasttrace.models.readout import top_tokens
from fasttrace.settings.methods import PmetSettings, RomeSettings, ValueSettings


@dataclass(eq=False)
class FactContexts:
    """The sequences of one fact: its contexts, the un-prefixed one first, then the KL prompt.

    The KL prompt is "{subject} is a", cut after the subject. ids: token ids of each sequence; the contexts end with
    target[:-1]. first, last: the subject's first and last token in each. target: (K,) ids.
    experts: layer with experts → those that the fact's edit changes there.
    """

    fact: EncodedFact
    ids: list[list[int]]
    first: list[int]
    last: list[int]
    target: tuple[int, ...]
    experts: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def subjects(self, drawn: int | None = None) -> list[Subject | None]:
        """The tokens that get noise in a corrupted problem, one per sequence, and None for the KL prompt.

        drawn: None, or how many noise samples the fact's edit has drawn. Each sequence, the KL prompt included, then
        draws the next one, for the tokens of `own_place`.
        """
        if drawn is not None:
            return [own_place(self.fact, len(ids), drawn + i) for i, ids in enumerate(self.ids)]
        return [
            *(Subject(self.fact, a, b + 1) for a, b in zip(self.first[:-1], self.last[:-1], strict=True)),
            None,
        ]

    def unseen(self, model: Decoder, layer: int) -> str | None:
        """Why no δ at the last subject token after `layer` can change the target's probability, or None if one can.

        If none can, the loss is least at δ = 0, and Adam would amplify rounding differences of equal products.
        """
        contexts = zip(self.ids[:-1], self.last[:-1], strict=True)
        if any(model.reach(layer, last) >= len(ids) - len(self.target) for ids, last in contexts):
            return None
        return f"no token that predicts the target sees the last subject token after layer {layer}: its δ is zero"


def contexts_of(
    model: Decoder,
    fact: EncodedFact,
    target: Sequence[int],
    contexts: Sequence[str],
    experts: Mapping[int, tuple[int, ...]] | None = None,
) -> FactContexts:
    """The fact encoded in every context. contexts: prompt templates; the first is "{}". experts: see `FactContexts`.

    Raises ModelError where the model has too few positions for a context.
    """
    ids, first, last = [], [], []
    own = fact.fact
    for template in contexts:
        prompt = template.replace("{}", own.prompt, 1)
        one = encode_fact(
            model.tokenizer,
            Fact(prompt, own.subject, own.target_true, own.target_false, target_prefix=own.target_prefix),
        )
        ids.append([*one.ids, *target[:-1]])
        model.check_length(len(ids[-1]), f"fact '{fact.fact_id}' in the context {shown(template)}")
        first.append(one.subject_begin)
        last.append(one.subject_end - 1)
    essence = encode_fact(model.tokenizer, Fact("{} is a", fact.fact.subject, fact.fact.target_true))
    ids.append(list(essence.ids[: essence.subject_end]))
    first.append(essence.subject_begin)
    last.append(essence.subject_end - 1)
    return FactContexts(fact, ids, first, last, tuple(target), experts or {})


@dataclass(eq=False)
class Clean:
    """The parts of the clean pass over a batch of facts that are kept: `prefix`, `entry`, `start` and `before` on the
    device of their block, all others on the model's.

    prefix: layer → keys and values (n_prefix, Hkv, hd) of the tokens before the last subject token.
    entry: edited layer → (resid_mid, value), each (n_tail, d), of the tokens from the last subject token on.
    v0: edited layer → (facts, d), the vector to which δ is added, at the last subject token of the un-prefixed context.
    mean_value: the same, averaged over contexts.
    key, mean_key: edited layer → (facts, m), the key there, of the experts that are edited, and its mean over
    contexts.
    start: layer → (n, d), the layer's input at every context's tokens up to the last subject token.
    kl: (facts, V) log-probabilities after the KL prompt.
    Where δ is added to both modules, also of the tokens at the last subject token:
    attn0: edited layer → (facts, d), the attention module's output in the un-prefixed context.
    before: edited layer → (input of the layer, attention module's output), each (n_sequences, d).
    """

    prefix: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    entry: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    v0: dict[int, Tensor] = field(default_factory=dict)
    mean_value: dict[int, Tensor] = field(default_factory=dict)
    key: dict[int, Tensor] = field(default_factory=dict)
    mean_key: dict[int, Tensor] = field(default_factory=dict)
    start: dict[int, Tensor] = field(default_factory=dict)
    kl: Tensor = field(default_factory=lambda: torch.zeros(0))
    attn0: dict[int, Tensor] = field(default_factory=dict)
    before: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


class ValueBatch:
    """The clean pass over some facts, from which `optimise` finds δ for any (fact, layer).

    layers: the layers at which δ may be added.
    at: "mlp" adds δ to the MLP's output (ROME), "block" to the block's output (MEMIT), "modules" one δ to the MLP's
    output and one to the attention's (PMET).
    starts: layers whose input is kept at the contexts' tokens up to the last subject token.
    corruption: noise on the subject in every context, or None.
    """

    def __init__(
        self,
        model: Decoder,
        facts: Sequence[FactContexts],
        layers: Sequence[int],
        *,
        at: At = "mlp",
        starts: Sequence[int] = (),
        corruption: Corruption | None = None,
    ) -> None:
        self.model, self.facts, self.layers = model, list(facts), sorted(set(layers))
        self.at, self.starts, self.corruption = at, set(starts), corruption
        self.anew = corruption is not None and corruption.anew
        self.prefix_len = np.array([last for f in facts for last in f.last], dtype=np.int64)
        lengths = np.array([len(ids) for f in facts for ids in f.ids], dtype=np.int64)
        self.tail_len = lengths - self.prefix_len
        self.begin = np.cumsum(lengths) - lengths
        self.of_fact = np.cumsum([0, *(len(f.ids) for f in facts)])
        self.context_rows = [
            np.concatenate([self.begin[s] + np.arange(self.prefix_len[s] + 1) for s in self.contexts(f)])
            for f in range(len(facts))
        ]
        self.clean = self._clean_pass(self.drawn_before(0))

    def drawn_before(self, step: int) -> Callable[[FactContexts], int]:
        """fact → how many noise samples its edit has drawn before a step, where every forward draws anew.

        ROME has drawn one for each context before its first step, for the key. Each step draws one for each sequence.
        """
        for_key = self.at == "mlp"
        return lambda fact: (len(fact.ids) - 1 if for_key else 0) + step * len(fact.ids)

    def _draw_again(self, step: int) -> None:
        """Replace what the noise of the contexts decides by its values under the noise of a later step."""
        again = self._clean_pass(self.drawn_before(step))
        self.clean.prefix, self.clean.entry, self.clean.before = again.prefix, again.entry, again.before

    def read_by_rome(self, settings: RomeSettings) -> tuple[Clean, Clean]:
        """The passes from which ROME reads the mean key over contexts, and the key and the output of the bare prompt.

        Both are the clean pass, except where each forward draws anew: then they are the released code's first forward,
        and one after the last step, whose update is never made.
        """
        if not self.anew:
            return self.clean, self.clean
        return self._clean_pass(lambda fact: 0), self._clean_pass(self.drawn_before(settings.steps + 1))

    def contexts(self, fact: int) -> range:
        """Indices of the sequences of a fact's contexts, the un-prefixed one first."""
        return range(int(self.of_fact[fact]), int(self.of_fact[fact + 1]) - 1)

    def _clean_pass(self, drawn: Callable[[FactContexts], int]) -> Clean:
        """drawn: fact → how many noise samples its edit has drawn, which is read only if each forward draws anew."""
        model, kept = self.model, Clean()
        batch = pack(model, [ids for f in self.facts for ids in f.ids])
        to = lambda parts: torch.from_numpy(np.concatenate(parts)).to(model.device)  # noqa: E731
        prefix_rows = to([b + np.arange(n) for b, n in zip(self.begin, self.prefix_len, strict=True)])
        tail_rows = to(
            [b + p + np.arange(n) for b, p, n in zip(self.begin, self.prefix_len, self.tail_len, strict=True)]
        )
        context_rows = to(self.context_rows)
        last = torch.from_numpy(self.begin + self.prefix_len).to(model.device)
        counts = np.diff(self.of_fact).tolist()

        def visit(seen: Visited) -> None:
            at = seen.k.device
            if seen.layer > self.layers[0]:
                rows = prefix_rows.to(at)
                kept.prefix[seen.layer] = seen.k[rows], seen.v[rows]
            if seen.layer in self.starts:
                kept.start[seen.layer] = seen.resid_pre[context_rows.to(at)]
            if seen.layer not in self.layers:
                return
            rows, ends = tail_rows.to(at), last.to(at)
            kept.entry[seen.layer] = seen.resid_mid[rows], seen.value[rows]
            edited = seen.output(self.at)
            # The last sequence of each fact is the KL prompt, which is not a context of the key.
            own = [x[:-1] for x in torch.split(ends, counts)]
            home = lambda parts: torch.stack(parts).to(model.device)  # noqa: E731
            kept.v0[seen.layer] = home([edited[x[0]] for x in own])
            kept.mean_value[seen.layer] = home([edited[x].mean(0) for x in own])
            keys = [seen.keys[x].of(f.experts.get(seen.layer, ())) for f, x in zip(self.facts, own, strict=True)]
            kept.key[seen.layer] = home([key[0] for key in keys])
            kept.mean_key[seen.layer] = home([key.mean(0) for key in keys])
            if self.at == "modules":
                kept.attn0[seen.layer] = home([seen.attn[x[0]] for x in own])
                kept.before[seen.layer] = seen.resid_pre[ends], seen.attn[ends]

        subjects = [subject for f in self.facts for subject in f.subjects(drawn(f) if self.anew else None)]
        with torch.no_grad():
            h = walk(model, batch, embed_corrupted(model, batch, subjects, self.corruption), visit)
            ends = torch.stack([x[-1] for x in torch.split(last, counts)])
            kept.kl = row_logits(model, h[ends.to(h.device)]).float().log_softmax(-1).to(model.device)
        return kept

    def optimise(
        self, jobs: Sequence[tuple[int, int]], settings: ValueSettings, *, minimise: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Run Adam on δ for every job.

        Loss = NLL + kl_factor · KL + weight_decay · ‖δ‖/‖v0‖², with exp(−NLL) in place of NLL if `minimise`. Where each
        module has a δ, both are bounded and weighed by themselves, and only the MLP's is returned.

        jobs: (index of the fact, layer) in order of layer, none of them `unseen`.
        Return (δ (P, d) float32, the last loss of each job (P,)). Where a job diverged, its δ is 0 and its loss NaN.
        """
        v0 = torch.stack([self.v0(layer, settings)[fact] for fact, layer in jobs]).float()  # (P, modules, d)
        length = v0.norm(dim=2)
        limit = settings.clamp * length[..., None]
        delta = torch.zeros_like(v0, requires_grad=True)
        settling = settings if isinstance(settings, PmetSettings) and not minimise else None
        weight = torch.ones(len(jobs), device=v0.device)
        adam = torch.optim.Adam([delta], lr=settings.lr)
        objective = _Objective(self, jobs)
        running = torch.arange(len(jobs), device=v0.device)
        last = torch.zeros(len(jobs), dtype=torch.float64, device=v0.device)
        for step in range(settings.steps):
            if step and self.anew:
                self._draw_again(step)
            mine = delta[running]
            nll, kl, settled = objective.losses(mine, settling is not None)
            decay = (mine.norm(dim=2) / length[running].square()).sum(1)
            loss = (torch.exp(-nll) if minimise else nll) * weight[running] + settings.kl_factor * kl
            loss = loss + settings.weight_decay * decay
            last[running] = loss.detach().double()
            if not minimise and (settings.early_stop is not None or settling is not None):
                stays = torch.ones_like(running, dtype=torch.bool)
                if settings.early_stop is not None:
                    stays = loss.detach() >= settings.early_stop
                if settled is not None and settling is not None:
                    weight[running] = torch.where(settled, settling.settled_factor, 1.0)
                    if settling.settled_kl is not None:
                        stays &= ~settled | (settings.kl_factor * kl.detach() >= settling.settled_kl)
                if not bool(stays.all()):
                    running, loss = running[stays], loss[stays]
                    if not len(running):
                        break
                    objective = _Objective(self, [jobs[i] for i in running.tolist()])
            (delta.grad,) = torch.autograd.grad(loss.sum(), delta)
            before = delta.detach().clone()
            adam.step()
            with torch.no_grad():
                norm = delta.norm(dim=2, keepdim=True)
                moved = delta * torch.where(norm > limit, limit / norm, torch.ones_like(norm))
                # Adam would go on moving an edit that has stopped.
                delta.copy_(before.index_copy(0, running, moved[running]))
        finite = torch.isfinite(delta.detach()).flatten(1).all(1) & torch.isfinite(last)
        return torch.where(finite[:, None], delta.detach()[:, 0], 0.0), torch.where(finite, last, torch.nan)

    def v0(self, layer: int, settings: ValueSettings) -> Tensor:
        """(facts, modules, d), the vectors to which each δ is added and whose norms bound it, the MLP's first."""
        averaged = isinstance(settings, RomeSettings) and settings.key_mode == "r-rome"
        own = (self.clean.mean_value if averaged else self.clean.v0)[layer]
        return torch.stack([own, self.clean.attn0[layer]] if self.at == "modules" else [own], dim=1)


class _Objective:
    """NLL and KL of a batch's jobs as functions of their δ."""

    def __init__(self, batch: ValueBatch, jobs: Sequence[tuple[int, int]]) -> None:
        self.batch, self.jobs = batch, list(jobs)
        prefix_begin = np.cumsum(batch.prefix_len) - batch.prefix_len
        tail_begin = np.cumsum(batch.tail_len) - batch.tail_len
        spans: list[Span] = []
        sequence: list[int] = []
        targets: list[int] = []
        is_kl: list[bool] = []
        for job, (fact, _) in enumerate(self.jobs):
            target = batch.facts[fact].target
            for s in range(int(batch.of_fact[fact]), int(batch.of_fact[fact + 1])):
                kl = s + 1 == batch.of_fact[fact + 1]
                prefix, tail = int(batch.prefix_len[s]), int(batch.tail_len[s])
                read = 1 if kl else len(target)
                spans.append(Span(job, int(tail_begin[s]), tail, prefix, int(prefix_begin[s]), prefix, read))
                sequence.append(s)
                is_kl += [kl] * read
                targets += [0] if kl else target
        self.sequence = torch.tensor(sequence, device=batch.model.device)
        self.wave = EditWave(batch.model, [layer for _, layer in self.jobs], spans)
        device = batch.model.device
        kl_row = torch.tensor(is_kl, device=device)
        self.kl_rows, self.scored = kl_row.nonzero()[:, 0], (~kl_row).nonzero()[:, 0]
        self.targets = torch.tensor(targets, device=device)[self.scored]
        self.owner = self.wave.read_owner[self.scored]
        self.tokens = torch.bincount(self.owner, minlength=len(self.jobs))
        self.kl_fact = torch.tensor([fact for fact, _ in self.jobs], device=device)

    def losses(self, delta: Tensor, settles: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
        """delta: (P, modules, d) → (NLL (P,), KL (P,), whether the job is settled (P,)), the first two differentiable.

        NLL: −log p(target) per target token, averaged over contexts. KL: divergence of the edited from the unedited
        distribution after the KL prompt. A job is settled where every token of its target is the likeliest in every
        context, which is only looked at if `settles`.
        """
        batch, model, wave = self.batch, self.batch.model, self.wave

        def enter(layer: int, rows: Tensor, first: int, begin: np.ndarray) -> Tensor:
            resid_mid, value = (part[rows] for part in batch.clean.entry[layer])
            block = model.blocks[layer]
            places, mine = self._edited_rows(layer, first, first + len(begin) - 1)
            change = delta.to(value.dtype)[wave.owner[mine]].to(value.device)
            places = places.to(value.device)
            if batch.at == "mlp":
                return resid_mid + block.mlp_add(value.index_add(0, places, change[:, 0]))
            out = resid_mid + block.mlp_add(value)
            if batch.at == "block":
                return out.index_add(0, places, change[:, 0])
            of = self.sequence[mine].to(value.device)
            h, attn = (part[of] for part in batch.clean.before[layer])
            mid = h + block.attn_add(attn + change[:, 1])
            at_mlp = value[places] if block.parallel else block.mlp_output(block.mlp_norm(mid))
            return out.index_copy(0, places, mid + block.mlp_add(at_mlp + change[:, 0]))

        h = wave.run(enter, kept=batch.clean.prefix).to(model.device)
        logp = row_logprob(model, h[self.scored], self.targets).to(model.device)
        total = logp.new_zeros(len(self.jobs)).index_add(0, self.owner, logp)
        now = row_logits(model, h[self.kl_rows]).float().log_softmax(-1).to(model.device)
        kl = (now.exp() * (now - batch.clean.kl[self.kl_fact])).sum(-1)
        settled = None
        if settles:
            top = top_tokens(model, h[self.scored]).to(model.device)
            likeliest = (top == self.targets).to(self.tokens.dtype)
            settled = torch.zeros_like(self.tokens).index_add(0, self.owner, likeliest) == self.tokens
        return -total / self.tokens, kl, settled

    def _edited_rows(self, layer: int, first: int, past: int) -> tuple[Tensor, Tensor]:
        """(n,) indices of the last subject tokens among the rows that enter for jobs first … past − 1, and (n,) the
        sequences that they are of."""
        wave = self.wave
        mine = ((wave.owner >= first) & (wave.owner < past)).nonzero()[:, 0]
        rows = wave.first_rows[mine]
        if layer < self.batch.model.n_layers - 1:
            return rows - int(wave.row_begin[first]), mine
        # At the last layer only rows that are read enter, and a sequence's first row may not be among them.
        places = torch.searchsorted(wave.read, rows).clamp_max(len(wave.read) - 1)
        is_read = wave.read[places] == rows
        return places[is_read] - int(wave.read_begin[first]), mine[is_read]
