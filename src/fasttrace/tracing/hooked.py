"""The plain engine: transformers' own forward with hooks, every pass of every cell as a whole. Slow and exact.

A wave is one fact, so all its passes have one length. Its clean and corrupted passes run first, with hooks that record
what the module gives in the passes that cells take it from. Then the passes of the cells run, as many in one forward as
fit into memory, with hooks that put the recorded values in place. Nothing is known of a model but where its modules are
(models/sublayers.py), and how much memory and work a pass takes is measured with one forward.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fasttrace.errors import ModelError, UserError
from fasttrace.memory import size_text
from fasttrace.models.corrupt import embed_base
from fasttrace.models.flops import median_seconds
from fasttrace.models.hooked import hooked, places, whole_logits
from fasttrace.models.sublayers import Sublayer
from fasttrace.tracing.cost import Cost, weight_bytes
from fasttrace.tracing.engine import Engine
from fasttrace.tracing.measures import MEASURES, measures
from fasttrace.tracing.plan import Cell, TraceItem, TraceWave, ranges
from fasttrace.tracing.wavefront import WaveResult

LIVE = 10  # tensors as large as the largest one that are alive together in a forward
TIMED = 64  # passes of a forward that is timed, at most
READ = 64  # passes whose distributions are made together from their logits


class PassCost(NamedTuple):
    """What one pass takes: FLOPs of its products, bytes of the tensors that it makes, and those of the largest."""

    flops: int
    moved: int
    largest: int


class HookedEngine(Engine):
    """`Engine` by hooks on transformers' forward. It takes any causal decoder, with or without an adapter."""

    @functools.cached_property
    def places(self) -> list[tuple[Sublayer, ...]]:
        """The modules of every layer whose values are replaced. Raises ModelError where a layer has none."""
        return places(self.model, self.intervention.module)

    @functools.cached_property
    def _costs(self) -> dict[int, PassCost]:
        return {}

    def pass_cost(self, length: int) -> PassCost:
        """What a pass of so many tokens takes, measured once. Raises ModelError where a module does not run once."""
        if length not in self._costs:
            counts = [0] * self.model.n_layers
            with _Meter() as meter, hooked(self._counting(counts, length)):
                whole_logits(self.model, torch.zeros((1, length), dtype=torch.int64, device=self.model.device), 1)
            self._costs[length] = PassCost(meter.flops, meter.moved, meter.largest)
            for layer, (parts, count) in enumerate(zip(self.places, counts, strict=True)):
                if count != len(parts):
                    raise ModelError(
                        f"trace: module {self.intervention.module}: expected it to run once a pass in layer {layer} of "
                        f"'{self.model.name}', got {count} runs of {len(parts)} modules; trace another module"
                    )
        return self._costs[length]

    def _counting(self, counts: list[int], length: int) -> list[tuple[Sublayer, Callable[[Tensor], None]]]:
        def count(layer: int) -> Callable[[Tensor], None]:
            def change(x: Tensor) -> None:
                if x.shape[:-1].numel() != length:
                    raise ModelError(
                        f"trace: module {self.intervention.module}: expected a vector a token in layer {layer} of "
                        f"'{self.model.name}', got values of shape {tuple(x.shape)} for {length} tokens"
                    )
                counts[layer] += 1

            return change

        return [(part, count(layer)) for layer, parts in enumerate(self.places) for part in parts]

    def pass_bytes(self, item: TraceItem) -> int:
        """Bytes for the activations of one pass of a fact, its logits among them."""
        logits = 2 * len(item.targets) * self.model.vocab_size * self.model.dtype.itemsize
        return LIVE * self.pass_cost(item.rows).largest + logits

    def taken_bytes(self, item: TraceItem) -> int:
        """Bytes of the values that a fact's cells take from other passes, about a vector a token and layer."""
        sources = {"denoise": 1, "noise": item.corrupted, "zero": 0}[self.intervention.method]
        return sources * item.rows * sum(map(len, self.places)) * self.model.width * self.model.dtype.itemsize

    def at_once(self, item: TraceItem, budget: int) -> int:
        """How many passes of a fact share a forward."""
        return max(0, budget - self.taken_bytes(item)) // self.pass_bytes(item)

    def split(self, items: list[TraceItem], budget: int, done: Collection[int] = ()) -> list[TraceWave]:
        for item in items:
            if not self.at_once(item, budget):
                least = self.taken_bytes(item) + self.pass_bytes(item)
                raise UserError(
                    f"memory: expected a budget of at least {size_text(least)} for a pass of fact "
                    f"'{item.encoded.fact_id}', got {size_text(budget)}; use a larger --memory"
                )
        return [
            TraceWave([(number, list(item.cells))], min(self.passes(item), self.at_once(item, budget)) * item.rows)
            for number, item in enumerate(items)
            if number not in done
        ]

    def passes(self, item: TraceItem) -> int:
        """How many passes a fact has: the clean one, the corrupted ones, and those of its cells."""
        seen = sum(item.sees(self.model, cell, self.intervention) for cell in item.cells)
        return 1 + item.corrupted + item.runs * seen

    def flops(self, item: TraceItem) -> int:
        return self.passes(item) * self.pass_cost(item.rows).flops

    def cost(self, items: list[TraceItem], budget: int, cells: int) -> Cost:
        waves = self.split(items, budget)
        passes = [(item, self.passes(item), self.pass_cost(item.rows)) for item in items]
        forwards = sum(
            _parts(1 + item.corrupted, self.at_once(item, budget))
            + _parts(count - 1 - item.corrupted, self.at_once(item, budget))
            for item, count, _ in passes
        )
        flops = sum(count * one.flops for _, count, one in passes)
        largest = max((self._peak(item, budget) for item in items), default=0)
        weights = weight_bytes(self.model)
        return Cost(
            facts=len(items),
            cells=cells,
            computed=sum(len(item.cells) for item in items),
            waves=forwards,
            rows=max((wave.rows for wave in waves), default=0),
            flops=flops,
            wave_flops=flops,
            weight_bytes=weights * forwards,
            activation_bytes=2 * sum(count * one.moved for _, count, one in passes),
            peak_bytes=weights + largest,
        )

    def _peak(self, item: TraceItem, budget: int) -> int:
        at_once = min(self.passes(item), self.at_once(item, budget))
        return self.taken_bytes(item) + at_once * self.pass_bytes(item)

    def rate(self, budget: int) -> float:
        length = max(self._costs, default=8)
        cost = self.pass_cost(length)
        passes = min(TIMED, max(1, budget // (LIVE * cost.largest)))
        ids = torch.zeros((passes, length), dtype=torch.int64, device=self.model.device)
        return passes * cost.flops / median_seconds(self.model, lambda: whole_logits(self.model, ids, 1), 2)

    def start(self, items: list[TraceItem], wave: TraceWave, budget: int, *, tidy: bool) -> Callable[[], WaveResult]:
        [(number, cells)] = wave.items
        found = _Fact(self, items[number], budget).traced(cells)
        result = WaveResult({number: found.clean}, {number: found.noised}, {(number, c): p for c, p in found.cells})
        return lambda: result


class _Traced(NamedTuple):
    """clean: (M, 1). noised: (M, n). cells: (cell, (M, runs)) of every cell."""

    clean: np.ndarray
    noised: np.ndarray
    cells: list[tuple[Cell, np.ndarray]]


class _Fact:
    """The passes of one fact.

    ids: (1 + n, T) tokens of the clean pass and the corrupted ones. embedded: (1 + n, T, d) what the embedding gives
    for them, or None without noise. taken: by layer and module, (sources, T, …) the values that cells take, from the
    clean pass or from each corrupted one.
    """

    def __init__(self, engine: HookedEngine, item: TraceItem, budget: int) -> None:
        self.engine, self.item, self.model = engine, item, engine.model
        self.at_once = engine.at_once(item, budget)
        self.ids = torch.tensor([item.passes.clean, *item.passes.corrupted], device=self.model.device)
        self.embedded = self._embedded() if item.passes.noised and item.corrupted else None
        self.taken: list[list[Tensor]] = []
        self.clean_logp: Tensor | None = None  # (V,) log p of the clean pass where distributions are compared

    def _embedded(self) -> Tensor:
        drawn = (self.engine.sigma, self.engine.noise, self.engine.seed)
        x, _ = embed_base(self.model, [self.item.passes], *drawn)
        length, begin = self.item.rows, self.item.passes.begin
        every = x[:length].repeat(len(self.ids), 1, 1)
        every[1:, begin:] = x[length:].view(len(self.ids) - 1, length - begin, -1)
        return every

    def traced(self, cells: Sequence[Cell]) -> _Traced:
        item, engine = self.item, self.engine
        base = self._base()
        clean, noised = base[:, :1], base[:, 1:]
        if not item.sees_corruption(self.model):
            noised = clean.repeat(noised.shape[1], 1)
        seen = [cell for cell in cells if item.sees(self.model, cell, engine.intervention)]
        changed = noised if engine.intervention.method == "denoise" else clean.repeat(item.runs, 1)
        found = dict.fromkeys(cells, changed)
        found.update(zip(seen, self._patched(seen), strict=True))
        return _Traced(clean, noised, list(found.items()))

    def _base(self) -> np.ndarray:
        """(M, 1 + n) of the clean pass and the corrupted ones. Sets `taken`."""
        method = self.engine.intervention.method
        sources = {"denoise": slice(0, 1), "noise": slice(1, None), "zero": slice(0, 0)}[method]
        kept: list[list[list[Tensor]]] = [[[] for _ in parts] for parts in self.engine.places]
        found = []
        for first in range(0, len(self.ids), self.at_once):
            which = np.arange(first, min(first + self.at_once, len(self.ids)))
            mine = np.flatnonzero(np.isin(which, np.arange(len(self.ids))[sources]))
            found.append(self._measured(which, self._recording(kept, len(which), mine)))
        self.taken = [[torch.cat(some) for some in parts] for parts in kept]
        return np.concatenate(found, 1)

    def _recording(self, kept: list[list[list[Tensor]]], passes: int, mine: np.ndarray) -> Any:
        def record(some: list[Tensor]) -> Callable[[Tensor], None]:
            return lambda x: some.append(x.reshape(passes, self.item.rows, -1)[mine].clone())

        parts = zip(self.engine.places, kept, strict=True)
        return [(part, record(some)) for layer, lists in parts for part, some in zip(layer, lists, strict=True)]

    def _patched(self, cells: Sequence[Cell]) -> list[np.ndarray]:
        """(M, runs) of every cell."""
        runs = self.item.runs
        run = np.tile(np.arange(runs), len(cells))
        # Where a cell's pass begins: from the corrupted pass of its run, or from the clean one.
        which = 1 + run if self.engine.intervention.method == "denoise" else np.zeros_like(run)
        about = np.array([(c.token, c.start, c.stop, c.tokens, *c.heads) for c in cells], dtype=np.int64)
        about = about.reshape(-1, 6).repeat(runs, 0)
        found = np.empty((len(MEASURES), len(run)))
        for first in range(0, len(run), self.at_once):
            part = slice(first, first + self.at_once)
            found[:, part] = self._measured(which[part], self._replacing(about[part], run[part]))
        return np.split(found, len(cells), 1) if cells else []

    def _replacing(self, about: np.ndarray, run: np.ndarray) -> Any:
        """about: (passes, 6) each pass's cell, run: (passes,) → the hooks that put the taken values in place."""
        token, start, stop, tokens, head, heads = about.T
        changes = []
        for layer, parts in enumerate(self.engine.places):
            inside = np.flatnonzero((start <= layer) & (layer < stop))
            if not len(inside):
                continue
            size = np.maximum(heads, 1)[inside]
            count = tokens[inside] * size
            within = ranges(np.zeros_like(count), count)  # token by token, and head by head in it
            size = size.repeat(count)
            place = (
                inside.repeat(count),
                token[inside].repeat(count) + within // size,
                head[inside].repeat(count) + within % size,
            )
            source = (run[inside].repeat(count), *place[1:])
            for number, part in enumerate(parts):
                changes.append((part, self._change(self.taken[layer][number], len(about), place, source)))
        return changes

    def _change(
        self, taken: Tensor, passes: int, place: tuple[np.ndarray, ...], source: tuple[np.ndarray, ...]
    ) -> Callable[[Tensor], Tensor]:
        """place, source: (n,) pass (or source), token and head of every vector that is replaced."""
        method = self.engine.intervention.method
        parts = self.model.n_heads if self.engine.intervention.module == "head" else 1

        def change(x: Tensor) -> Tensor:
            to = lambda indices: tuple(torch.from_numpy(index).to(x.device) for index in indices)  # noqa: E731
            new = x.clone(memory_format=torch.contiguous_format)
            values = new.view(passes, self.item.rows, parts, -1)
            if method == "zero":
                values[to(place)] = 0
            else:
                given = taken.to(x.device).view(len(taken), self.item.rows, parts, -1)
                which = np.zeros_like(source[0]) if method == "denoise" else source[0]
                values[to(place)] = given[to((which, *source[1:]))]
            return new

        return change

    def _measured(self, which: np.ndarray, changes: Any) -> np.ndarray:
        """which: (passes,) the pass that each begins as → (M, passes), from one forward with these hooks."""
        item = self.item
        if self.embedded is not None:
            embedded = self.embedded[torch.from_numpy(which).to(self.embedded.device)]
            given = Sublayer(self.model.hf.get_input_embeddings())
            changes = [(given, lambda x: embedded.to(x.device, x.dtype)), *changes]
        with hooked(changes):
            logits = whole_logits(self.model, self.ids[torch.from_numpy(which).to(self.ids.device)], len(item.targets))
        return np.concatenate([self._read(some) for some in logits.split(READ)], 1)

    def _read(self, logits: Tensor) -> np.ndarray:
        """logits: (passes, K, V) where the scored tokens are predicted → (M, passes)."""
        item, passes = self.item, len(logits)
        logits = logits.double()
        logp = logits.log_softmax(-1)
        targets = torch.tensor(item.targets, device=logits.device)
        scored = logp.gather(2, targets.expand(passes, -1)[..., None])[..., 0]
        first, at = np.arange(passes) * len(item.targets), item.compared_at
        three = kl = None
        if item.contrast is not None:
            tokens = [item.targets[at], item.contrast.true, item.contrast.false]
            three = logits[:, at, tokens].cpu().numpy()
        if self.engine.compare:
            if self.clean_logp is None:  # the clean pass comes first
                self.clean_logp = logp[0, at].clone()
            of = self.clean_logp
            kl = (of.exp() * (of - logp[:, at])).nan_to_num(0.0).sum(1).clamp_min(0.0).cpu().numpy()
        contrasted = np.full(passes, three is not None)
        return measures(scored.reshape(-1).cpu().numpy(), first, first + at, contrasted, three, kl)


def _parts(count: int, size: int) -> int:
    return -(-count // size)


class _Meter(TorchDispatchMode):
    """Counts FLOPs of the products that torch knows, and bytes of new tensors, while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.moved = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += int(formula(*args, **kwargs, out_val=out))
        there = {_storage(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        for one in tree_leaves(out):
            if isinstance(one, Tensor) and _storage(one) not in there:
                size = one.numel() * one.element_size()
                self.moved, self.largest = self.moved + size, max(self.largest, size)
        return out


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
