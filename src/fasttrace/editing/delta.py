"""An edit as a change of down-projections, and as a file. `editing.applied` computes with it."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fasttrace.cache import digest, load_tensors, metadata_of, save_tensors
from fasttrace.errors import UserError, shown
from fasttrace.models.adapter import Decoder, Model
from fasttrace.models.block import Block
from fasttrace.models.experts import SHARED
from fasttrace.settings.arguments import checked


@dataclass(frozen=True, eq=False)
class LowRank:
    """W += valueᵀ key, a sum of w outer products. value: (w, d) float32. key: (w, m) float32.

    experts: those that are changed at a layer with experts. W is their down-projections side by side there, (d, S·m).

    Scores use the unrounded update, although a bfloat16 W rounds it when it is written. On SmolLM2-135M the scored p
    differs from that of the written weights by 0.002 on average. Scoring the rounded update differs no less, because
    this is the noise of a bfloat16 pass.
    """

    value: Tensor
    key: Tensor
    bias: None = None
    experts: tuple[int, ...] = ()

    @classmethod
    def zero(cls, block: Block, experts: Sequence[int] = ()) -> "LowRank":
        """A rank-one update that does not change the block's down-projection."""
        d, m = block.down_shape_of(experts)
        value, key = (torch.zeros(1, n, device=block.device) for n in (d, m))
        return cls(value, key, experts=tuple(experts))

    def changes(self) -> bool:
        """Whether the update changes any weight."""
        return bool(self.value.any())

    def matrix(self) -> Tensor:
        """The change of W, (d, m) float64."""
        return self.value.double().T @ self.key.double()

    def columns(self, of: slice) -> "LowRank":
        """The update of some columns of W."""
        return LowRank(self.value, self.key[:, of])


@dataclass(frozen=True, eq=False)
class Dense:
    """W += change, and bias += bias where the method changes it. change: (d, m) float32. bias: (d,) float32 or None.
    experts: as in `LowRank`.

    In a bfloat16 model, those of fine-tuning are the changes that remain once the weights are rounded (`as_rounded`).
    Then the scores are those of the written weights. The others are not rounded.
    """

    change: Tensor
    bias: Tensor | None = None
    experts: tuple[int, ...] = ()

    def changes(self) -> bool:
        """Whether the update changes any weight."""
        return bool(self.change.any()) or (self.bias is not None and bool(self.bias.any()))

    def matrix(self) -> Tensor:
        """The change of W, (d, m) float64."""
        return self.change.double()

    def columns(self, of: slice) -> "Dense":
        """The update of some columns of W, and of the bias."""
        return Dense(self.change[:, of], self.bias)


Update = LowRank | Dense


def parts_of(update: Update) -> dict[int | None, Update]:
    """Expert → the update of its down-projection; {None: update} at a dense layer."""
    if not update.experts:
        return {None: update}
    m = (update.key if isinstance(update, LowRank) else update.change).shape[1] // len(update.experts)
    return {expert: update.columns(slice(i * m, (i + 1) * m)) for i, expert in enumerate(update.experts)}


def weight_of(block: Block, update: Update) -> Tensor:
    """(d, S·m), the W of an update: the block's down-projection, or those of the update's experts side by side."""
    weights = [block.down_of(expert).detach() for expert in parts_of(update)]
    return weights[0] if len(weights) == 1 else torch.cat(weights, dim=1)


@dataclass(frozen=True, eq=False, repr=False)
class Edit:
    """One edit of one fact.

    layer: the layer that the edit was requested for. updates: layer → its update.
    delta_norm: ‖δ‖/‖v0‖ (ROME, MEMIT) or the largest |ΔW| (fine-tuning).
    loss: the last loss computed, which one more update may follow.
    denominator: uᵀk with ‖u‖ = 1 (ROME).
    condition: condition number of C at `layer`, with its diagonal scaled to 1 (ROME, MEMIT).
    reason: why the edit is zero, or None where it is not. Where nothing was optimised, there is no loss, denominator or
        condition.
    """

    fact_id: str
    layer: int
    updates: Mapping[int, Update]
    delta_norm: float | None
    loss: float | None
    denominator: float | None = None
    condition: float | None = None
    reason: str | None = None

    def __repr__(self) -> str:
        changed = f"changes layers {', '.join(map(str, sorted(self.updates)))}" if self.changes() else self.reason
        return f"Edit of {self.fact_id!r} at layer {self.layer}: {changed or 'changes nothing'}"

    @property
    def first_layer(self) -> int:
        """The lowest layer that the edit changes."""
        return min(self.updates)

    def changes(self) -> bool:
        """Whether the edit changes any weight."""
        return any(update.changes() for update in self.updates.values())


PAST = ("past_keys", "past_total")  # tensors of a delta file that only another mass edit reads
DIVERGED = (
    "the optimisation diverged (a loss or a weight is NaN or infinite): its change is zero; a smaller lr may help"
)
UNMOVED = (
    "the optimisation changed nothing (its loss was below early_stop before the first step, or pmet's target had "
    "settled, or the loss had no gradient, or the change is too small for the weights' dtype): its change is zero"
)
NO_NUMBER = "the edited model's probabilities are not numbers: its weights are too large"


def unrouted(experts: Sequence[int], layer: int) -> str:
    """Why an edit of experts that its fact does not go to is zero."""
    which = ", ".join(map(str, experts))
    return f"the last subject token of the prompt does not go to expert {which} of layer {layer}: its change is zero"


def finite_edit(model: Decoder, edit: Edit) -> Edit:
    """The edit, or, where its loss or a number of its change is NaN or infinite, a zero edit with the reason.

    An edit that is zero because no step changed it gets a reason, too.
    """
    parts = [part for update in edit.updates.values() for part in _parts(update).values()]
    numbers = [number for number in (edit.loss, edit.delta_norm) if number is not None]
    if all(map(math.isfinite, numbers)) and all(bool(torch.isfinite(part).all()) for part in parts):
        return edit if edit.reason is not None or edit.changes() else replace(edit, reason=UNMOVED)
    experts = {at: update.experts for at, update in edit.updates.items()}
    return zero_edit(model, edit.fact_id, edit.layer, sorted(edit.updates), DIVERGED, experts)


def zero_edit(
    model: Decoder, fact_id: str, layer: int, window: Sequence[int], reason: str, experts: Mapping[int, tuple[int, ...]]
) -> Edit:
    """An edit of a window's layers, of their experts where they have any, that changes nothing for the given reason."""
    updates = {at: LowRank.zero(model.blocks[at], experts.get(at, ())) for at in window}
    return Edit(fact_id, layer, updates, 0.0, None, reason=reason)


def summed(edits: Sequence[Mapping[int, Update]]) -> dict[int, Dense]:
    """Several edits of one model as one: layer → the sum of their changes, computed in float64."""
    total: dict[int, Dense] = {}
    for layer in sorted({layer for updates in edits for layer in updates}):
        at_layer = [updates[layer] for updates in edits if layer in updates]
        biases = [u.bias.double() for u in at_layer if u.bias is not None]
        parts: dict[int | None, list[Tensor]] = {}
        for update in at_layer:
            for expert, part in parts_of(update).items():
                parts.setdefault(expert, []).append(part.matrix())
        experts = sorted(parts, key=lambda one: -1 if one is None else one)
        sums = [torch.stack(parts[one]).sum(0) if len(parts[one]) > 1 else parts[one][0] for one in experts]
        change = sums[0] if len(sums) == 1 else torch.cat(sums, dim=1)
        bias = torch.stack(biases).sum(0).float() if biases else None
        total[layer] = Dense(change.float(), bias, tuple(one for one in experts if one is not None))
    return total


def as_rounded(weight: Tensor, change: Tensor) -> Tensor:
    """The change that remains when the changed weight is rounded to its dtype: round(W + ΔW) − W, float32.

    For float32 and float64 weights it is the change itself. A step of bfloat16 is 1/256 to 1/128 of the weight.
    Rounding drops most changes below half a step and turns others into whole steps. With ε = 1e-4, one weight of
    SmolLM2-135M in seven moves.

    weight, change: (d, m) or (d,), change float32.
    """
    if weight.dtype in (torch.float32, torch.float64):
        return change
    return (weight.float() + change).to(weight.dtype).float() - weight.float()


def digest_of(updates: Mapping[int, Update]) -> str:
    """A hash of the numbers of an edit."""
    return digest({name: tensor.detach().cpu().contiguous() for name, tensor in tensors_of(updates).items()})


def tensors_of(updates: Mapping[int, Update]) -> dict[str, Tensor]:
    """The tensors of a delta file: `<layer>.value` and `<layer>.key`, or `<layer>.change` and maybe `<layer>.bias`, and
    at a layer with experts `<layer>.experts`, (S,) int64."""
    tensors: dict[str, Tensor] = {}
    for layer, update in updates.items():
        tensors |= {f"{layer}.{name}": tensor for name, tensor in _parts(update).items()}
        if update.experts:
            tensors[f"{layer}.experts"] = torch.tensor(update.experts)
    return tensors


def _parts(update: Update) -> dict[str, Tensor]:
    if isinstance(update, LowRank):
        return {"value": update.value, "key": update.key}
    return {"change": update.change} | ({} if update.bias is None else {"bias": update.bias})


def save_delta(
    path: str | Path,
    model: Decoder,
    updates: Mapping[int, Update],
    more: Mapping[str, Tensor] | None = None,
    **about: Any,
) -> Path:
    """Write an edit without the model, as safetensors.

    The tensors are those of `tensors_of`. more: other tensors that `<layer>.past_keys` or `<layer>.past_total` name
    (`editing.sequence`). about: JSON values for the metadata, beside the model's name, hash and dtype.

    Raises UserError where the file exists.
    """
    check_updates(model, updates, "save_delta")
    path = check_delta_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    made_for = {"model": model.name, "model_hash": model.model_hash, "dtype": model.dtype_name}
    save_tensors(path, {**tensors_of(updates), **(more or {})}, {"kind": "delta", **made_for, **about})
    return path


def check_delta(path: str | Path) -> None:
    """Raise UserError where a file is not a delta. Reads its header, but no tensor."""
    about = metadata_of(Path(path))
    if about is not None and about.get("kind") != "delta":
        raise UserError(f"file '{path}': expected a delta that `fasttrace edit --delta` wrote, got another file")
    if about is None:
        load_tensors(Path(path))  # raises with the reason


@checked
def load_delta(path: str | Path, model: Model) -> dict[int, Update]:
    """Read an edit that `save_delta` wrote for this model. Returns layer → update, which `apply_delta` takes.

    Raises UserError where the file is missing, damaged, not a delta, belongs to another model or dtype, or where its
    tensors do not fit the model (`check_updates`).
    """
    return read_delta(path, model)[0]


def read_delta(path: str | Path, model: Decoder) -> tuple[dict[int, Update], dict[str, Tensor], dict[str, Any]]:
    """(layer → update, the tensors with the keys of the edits by name, the metadata) of a delta file.

    Raises UserError as `load_delta`.
    """
    path = Path(path).expanduser()
    check_delta(path)
    tensors, about = load_tensors(Path(path))
    if about.get("model_hash") != model.model_hash:
        made, now = about.get("dtype", model.dtype_name), model.dtype_name
        name = shown(about.get("model"))
        if made != now:
            raise UserError(
                f"delta '{path}' was made for {name} in {made}: expected '{model.name}' to be loaded with "
                f'dtype="{made}" (--dtype {made}), got {now}'
            )
        raise UserError(
            f"delta '{path}' was made for the model {name}: expected hash {about.get('model_hash')}, "
            f"got '{model.name}' with hash {model.model_hash}"
        )
    parts: dict[int, dict[str, Tensor]] = {}
    past: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if (
            found := re.fullmatch(rf"(0|[1-9]\d{{0,4}})\.(value|key|change|bias|experts|{'|'.join(PAST)})", name)
        ) is None:
            raise UserError(f"delta '{path}': expected tensors such as 5.value and 5.key, got {shown(name)}")
        if found[2] in PAST:
            past[name] = tensor
        else:
            parts.setdefault(int(found[1]), {})[found[2]] = tensor
    updates: dict[int, Update] = {}
    for layer, p in sorted(parts.items()):
        experts = tuple(p.pop("experts", torch.zeros(0)).flatten().tolist())
        if p.keys() == {"value", "key"}:
            updates[layer] = LowRank(p["value"], p["key"], experts=experts)
        elif "change" in p and p.keys() <= {"change", "bias"}:
            updates[layer] = Dense(p["change"], p.get("bias"), experts)
        else:
            expected = "value and key, or change and perhaps bias"
            raise UserError(f"delta '{path}': expected {expected} of layer {layer}, got {' and '.join(sorted(p))}")
    if not updates:
        raise UserError(f"delta '{path}': expected the change of at least one layer, got no tensor")
    check_updates(model, updates, f"delta '{path}'")
    return updates, past, about


def check_unchanged(model: Decoder, run: Mapping[str, Any], what: str) -> None:
    """Raise UserError where the model's weights are not those that a run edited, such as with its edit applied."""
    if model.model_hash != run["model_hash"]:
        raise UserError(
            f"{what}: expected '{model.name}' with the weights that were edited (hash {run['model_hash']}), got hash "
            f"{model.model_hash}: remove edits that are applied first"
        )


def check_updates(model: Decoder, updates: Mapping[int, Update], what: str) -> None:
    """Raise UserError where the layers, shapes or dtypes are not the model's, or a number is NaN or infinite.

    what: the first words of the error.
    """
    for layer, update in updates.items():
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < model.n_layers:
            raise UserError(f"{what}: expected layers from 0 to {model.n_layers - 1}, got {shown(layer)}")
        if not isinstance(update, LowRank | Dense):
            raise UserError(f"{what}: expected what ft.load_delta returns, got {shown(update)} at layer {layer}")
        d, m = model.blocks[layer].down_shape_of(checked_experts(model, layer, update.experts, what))
        if isinstance(update, LowRank):
            rank = len(update.value) if isinstance(update.value, Tensor) and update.value.ndim else 1
            wanted: dict[str, tuple[int, ...]] = {"value": (rank, d), "key": (rank, m)}
        else:
            wanted = {"change": (d, m)} | ({} if update.bias is None else {"bias": (d,)})
        for name, shape in wanted.items():
            part = getattr(update, name)
            if not isinstance(part, Tensor) or tuple(part.shape) != shape or part.dtype != torch.float32:
                got = f"{tuple(part.shape)} {part.dtype}" if isinstance(part, Tensor) else shown(part)
                raise UserError(f"{what}: expected {name} of layer {layer} to be {shape} torch.float32, got {got}")
            if not bool(torch.isfinite(part).all()):
                raise UserError(f"{what}: expected finite numbers in {name} of layer {layer}, got NaN or infinity")
        if update.bias is not None and model.blocks[layer].down_bias is None:
            raise UserError(f"{what}: expected no bias of layer {layer}, as '{model.name}' has none there, got one")


def checked_experts(model: Decoder, layer: int, experts: tuple[int, ...], what: str) -> tuple[int, ...]:
    """The experts of an update. Raises UserError where the layer does not have them, or has others only."""
    block = model.blocks[layer]
    if block.experts is None:
        expected, fits = "none", not experts
    else:
        all_routed = all(isinstance(one, int) and 0 <= one < block.experts.count for one in experts)
        fits = bool(experts) and len(set(experts)) == len(experts) and all_routed
        expected = f"some of 0 to {block.experts.count - 1}"
        if block.shared is not None:
            expected, fits = f"{expected}, or the shared one ({SHARED})", fits or tuple(experts) == (SHARED,)
    if not fits:
        got = ", ".join(map(shown, experts)) or "none"
        raise UserError(f"{what}: expected as the experts of layer {layer} {expected}, got {got}")
    return experts


def check_delta_file(path: str | Path) -> Path:
    """The file as a path. Raises UserError where it exists."""
    if Path(path).exists():
        raise UserError(f"delta file: expected a new file, got '{path}', which exists")
    return Path(path)
