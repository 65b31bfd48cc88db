"""An edit as a model computes with it: as a view of the model, or applied to its weights.

Only `apply_delta` changes a model's own parameters, and `Applied.remove` restores them bit for bit.

The weights of a frozen block (`Block.frozen`) are read-only, and there only while its layer is brought. An edit of them
is kept as its update, and made again whenever the layer is brought: its down-projection is the stored weight plus the
updates, in their order. That costs one pass over one matrix, beside bringing the whole layer. A changed copy of each
matrix would have to stay in memory, which frozen weights are meant to save.
"""

import copy
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from fasttrace.editing.delta import Dense, Update, check_updates, digest_of, load_delta, parts_of
from fasttrace.errors import UserError
from fasttrace.models.adapter import Decoder, Model
from fasttrace.models.block import Block
from fasttrace.models.experts import Experts
from fasttrace.models.placement import is_stored, keep_beside
from fasttrace.ops.rank_one import rank_one_
from fasttrace.settings.arguments import checked
from fasttrace.settings.kinds import Kind


@torch.no_grad()
def change_(weight: Tensor, update: Update) -> Tensor:
    """Apply an update, without its bias, to a down-projection in place. weight: (d, m), any layout. Returns it."""
    if weight.dtype == torch.float64 or isinstance(update, Dense):
        wide = torch.promote_types(weight.dtype, torch.float32)
        change = update.change if isinstance(update, Dense) else update.matrix()
        return weight.copy_(weight.to(wide) + change.to(weight.device, wide))
    for value, key in zip(update.value, update.key, strict=True):
        rank_one_(weight, value.to(weight.device), key.to(weight.device))
    return weight


Parts = dict[int | None, Tensor]  # expert, or None at a dense layer → a down-projection, (d, m)


def changed_weights(block: Block, update: Update) -> Parts:
    """Copies of the block's down-projections with the update applied, each in the layout of the original."""
    own = {expert: block.down_of(expert).detach() for expert in parts_of(update)}
    copies = {expert: weight.clone(memory_format=torch.preserve_format) for expert, weight in own.items()}
    return {expert: change_(copies[expert], part) for expert, part in parts_of(update).items()}


def changed_bias(block: Block, update: Update) -> Tensor | None:
    """(d,), the bias of the block's down-projection with the update applied, or None if the block has no bias."""
    bias = block.down_bias
    return bias if bias is None or update.bias is None else _changed_bias(bias, update.bias)


def _changed_bias(bias: Tensor, change: Tensor) -> Tensor:
    return (bias.detach().float() + change.to(bias.device)).to(bias.dtype)


class _Changed:
    """The down-projections of a block that an update changes, with it, and the bias (d,) or None.

    Those of a resident block are copies. Those of a frozen block are made from what is brought, when they are first
    read, and are let go with the layer.
    """

    def __init__(self, block: Block, update: Update) -> None:
        self.block, self.update = block, update
        self.kept: tuple[Parts, Tensor | None] | None = None if block.frozen else self._made()
        self.keeps = False

    def _made(self) -> tuple[Parts, Tensor | None]:
        return changed_weights(self.block, self.update), changed_bias(self.block, self.update)

    @property
    def now(self) -> tuple[Parts, Tensor | None]:
        """Weights and bias. While the layer of a frozen block is not brought, they are as `block` has them then."""
        if self.kept is not None:
            return self.kept
        if not self.block.is_brought:
            return {expert: self.block.down_of(expert) for expert in parts_of(self.update)}, self.block.down_bias
        made = self._made()
        if self.keeps:
            self.kept = made
        return made

    @property
    def experts(self) -> Experts:
        """The experts of a layer that has any."""
        assert self.block.experts is not None
        return self.block.experts.with_changed(self.now[0])

    @contextmanager
    def held(self) -> Iterator[None]:
        """While the body runs, what is made of a frozen block is kept."""
        with self.block.held():
            outer, self.keeps = self.keeps, True
            try:
                yield
            finally:
                self.keeps = outer
                if not outer:
                    self.kept = None


def edited_view(model: Decoder, updates: Mapping[int, Update]) -> Decoder:
    """A view of the model with an edit applied.

    Changed layers get their own down-projections. All other weights are shared, and `model` does not change.
    """
    view = copy.copy(model)
    view.blocks = list(model.blocks)
    for layer, update in updates.items():
        block, changed = copy.copy(model.blocks[layer]), _Changed(model.blocks[layer], update)
        # A new class, because families define `down` as a property that reads the module's parameter.
        block.__class__ = type(f"Edited{type(block).__name__}", (type(block),), _properties(changed))
        view.blocks[layer] = block
    return view


def _properties(changed: _Changed) -> dict[str, Any]:
    own: dict[str, Any] = {
        "down": property(lambda _: changed.now[0][None]),
        "down_bias": property(lambda _: changed.now[1]),
        "down_shape": property(lambda _: changed.block.down_shape),
        "is_brought": property(lambda _: changed.block.is_brought),
    }
    if changed.block.experts is not None:
        own = {"experts": property(lambda _: changed.experts), "is_brought": own["is_brought"]}
    return own | {"held": lambda _: changed.held()} if changed.block.frozen else own


@dataclass(eq=False)
class Applied:
    """An edit that is applied to a model's weights. `remove`, or the end of the `with` block, restores every weight.

    `with` gives the model: `with edit.applied() as model: model.generate("…")`.

    Until then `model.model_hash` is a hash of its old value and the edit, so that no result on disk or in a store is
    mistaken for one of the unedited model. Several edits are removed in reverse order.
    """

    model: Decoder
    digest: str = field(repr=False)  # of the updates
    _hash: str | None = field(repr=False)
    _sums: str = field(default="", repr=False)  # of the weights with the edit
    _undo: list[Callable[[], object]] = field(default_factory=list, repr=False)

    def remove(self) -> None:
        """Restore the weights, bit for bit. A second call does nothing.

        Raises UserError, and leaves the weights as they are, where an edit that was applied later is still applied.
        """
        if self._hash is None:
            return
        if self.model.applied[-1] is not self:
            later = len(self.model.applied) - 1 - self.model.applied.index(self)
            raise UserError(
                f"remove: expected the edit that was applied last, got one with {later} later: remove those first"
            )
        self.model.applied.pop()
        untouched = self.model.bit_sums() == self._sums
        for undo in reversed(self._undo):
            undo()
        if untouched:  # else the hash follows from the weights
            self.model.set_identity(self._hash)
        self._undo, self._hash = [], None

    def __enter__(self) -> Decoder:
        return self.model

    def __exit__(self, *_: object) -> None:
        self.remove()


def _updates(value: Any) -> Any:
    """What `apply_delta` takes → a path, or layer → update. Raises ValueError for anything else."""
    if isinstance(edits := getattr(value, "edits", None), list):  # an EditResult
        if len(edits) != 1:
            raise UserError(f"delta: expected a result with one edit, got {len(edits)}: give one of .edits")
        value = edits[0]
    models = getattr(value, "models", 1)
    if isinstance(models, int) and models > 1:  # a MassResult, whose updates are those of the last case
        raise UserError(f"delta: expected the edits of one model, got those of {models} cases, each in its own")
    value = getattr(value, "updates", value)  # an Edit or a MassResult
    if not isinstance(value, str | Path | Mapping):
        raise ValueError
    return value


Delta = Annotated[
    str | Path | Mapping[int, Update],
    Kind("the path of a delta file, what ft.load_delta returns, or an edit", _updates),
]


def updates_of(model: Decoder, delta: Delta, what: str) -> Mapping[int, Update]:
    """The changes of an edit that fits the model. what: names the caller. Raises the errors of `apply_delta`."""
    updates = delta if isinstance(delta, Mapping) else load_delta(delta, model)
    check_updates(model, updates, what)
    if updates and model.applied and digest_of(updates) in {one.digest for one in model.applied}:
        raise UserError(f"{what}: expected an edit that is not applied yet, got one that '{model.name}' has")
    return updates


@checked
def apply_delta(model: Model, delta: Delta) -> Applied:
    """Apply an edit to the model's weights in memory.

    Offloaded weights are read-only: the edit is kept beside them, and `model.hf` computes with it too. Only a
    transformers model that `wrap_model` was given does not have it.

    delta: a file of `save_delta`, what `load_delta` returns, or an edit or a result with one. A file fits only the
        model hash it was made for, which an applied edit changes. To apply two files, load both with `load_delta`
        first.

    Returns a handle that removes the edit exactly. It is also a context manager, which gives the model.
    Raises UserError as `load_delta` and where this edit is applied already.
    """
    updates = updates_of(model, delta, "apply_delta")
    applied = Applied(model, digest_of(updates), model.model_hash)
    for layer, update in updates.items():
        applied._undo += _apply(model, layer, update)
    edited = hashlib.sha256(f"{applied._hash}{applied.digest}".encode()).hexdigest()[:16]
    applied._sums = model.set_identity(edited)
    model.applied.append(applied)
    return applied


@contextmanager
def kept_beside(model: Decoder, updates: Mapping[int, Update]) -> Iterator[dict[int, Update]]:
    """While the body runs, whatever reads a stored weight of the model reads it with the edit.

    Gives the updates that are left: those of weights in memory, which do not change.
    """
    undo: list[Callable[[], object]] = []
    left: dict[int, Update] = {}
    try:
        for layer, update in updates.items():
            with model.brought(layer) as block:
                if _is_stored(model, block, update):
                    undo += _beside(model, block, update)
                else:
                    left[layer] = update
        yield left
    finally:
        for one in reversed(undo):
            one()


def _apply(model: Decoder, layer: int, update: Update) -> list[Callable[[], object]]:
    """Apply an update to a layer. Returns what restores it."""
    with model.brought(layer) as block:
        return (_beside if _is_stored(model, block, update) else _written)(model, block, update)


def _is_stored(model: Decoder, block: Block, update: Update) -> bool:
    """Whether the weights that an update changes are stored elsewhere. The block is brought."""
    return block.frozen and any(is_stored(model.hf, name) for name in places(model, block, update))


def _written(model: Decoder, block: Block, update: Update) -> list[Callable[[], object]]:
    """Write an update into a block's own weights. Returns what restores them."""
    made = changed_weights(block, update)
    parts = [(block.down_of(expert).detach(), weight) for expert, weight in made.items()]
    if block.down_bias is not None and update.bias is not None:
        parts.append((block.down_bias.detach(), _changed_bias(block.down_bias, update.bias)))
    before = [own.clone() for own, _ in parts]
    for own, changed in parts:
        own.copy_(changed)
    return [functools.partial(own.copy_, old) for (own, _), old in zip(parts, before, strict=True)]


def _beside(model: Decoder, block: Block, update: Update) -> list[Callable[[], object]]:
    """Keep an update beside a block's stored weights, which are brought with it from now on. The block is brought.

    Returns what takes the update away.
    """
    undo: list[Callable[[], object]] = []
    for name, views in places(model, block, update).items():
        change = functools.partial(changed_parameter, views=views)
        undo.append(keep_beside(model.hf, name, change))
    if (added := update.bias) is not None and block.down_bias is not None:
        of_bias = model.name_of(block.down_bias)
        undo.append(keep_beside(model.hf, of_bias, lambda stored: _changed_bias(stored, added)))
    return undo


# A down-projection as a view of its parameter, (shape, stride, offset), and its update. GPT-2 and GPT-OSS store it
# transposed, and the experts of a layer share a parameter.
View = tuple[tuple[tuple[int, ...], tuple[int, ...], int], Update]


def places(model: Decoder, block: Block, update: Update) -> dict[str, list[View]]:
    """Name of each parameter with down-projections that an update changes → those. The block is brought."""
    found: dict[str, list[View]] = {}
    for expert, part in parts_of(update).items():
        down = block.down_of(expert)
        name = model.name_of(down)
        offset = down.storage_offset() - model.hf.get_parameter(name).storage_offset()
        found.setdefault(name, []).append(((tuple(down.shape), down.stride(), offset), part))
    return found


def changed_parameter(own: Tensor, views: list[View]) -> Tensor:
    """A copy of a parameter with the updates of its down-projections applied."""
    weight = own.detach().contiguous().clone()
    for view, part in views:
        change_(weight.as_strided(*view), part)
    return weight
