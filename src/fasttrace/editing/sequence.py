"""The edits of one model so far: what the next group of a mass edit starts from, and what a file keeps of it."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from fasttrace.cache import load_tensors, metadata_of, save_tensors
from fasttrace.editing.delta import Dense, Update, checked_experts, read_delta, summed, tensors_of
from fasttrace.editing.methods.base import Past, PastKeys
from fasttrace.errors import UserError, shown
from fasttrace.models.adapter import Decoder
from fasttrace.models.experts import SHARED
from fasttrace.settings.methods import SPREAD

log = logging.getLogger(__name__)

MOST_EDITS = 10**9  # of a file, so that the number of the next fits the store
CHECKPOINT_SECONDS = 20.0
TABLES = ("scores", "prompts", "measures", "norms", "tasks")  # of a result, whose rows a checkpoint keeps
CHECKPOINT_SHARE = 10  # a checkpoint is written at most once in this many times what the last one took


@dataclass(frozen=True, eq=False)
class EditSequence:
    """The edits of one model so far.

    updates: layer → the sum of all changes. past: layer → the keys of all edits, if the method keeps them.
    n_edits: how many edits there are. unseen: fact_id → why a fact's own δ is zero. condition: the largest condition
    number of the last solves. changed: the prompts that edits of earlier runs should change, and once a run is done,
    its own.
    """

    updates: Mapping[int, Update] = field(default_factory=dict)
    past: Past = field(default_factory=dict)
    n_edits: int = 0
    unseen: Mapping[str, str] = field(default_factory=dict)
    condition: float | None = None
    changed: frozenset[str] = frozenset()

    @property
    def about(self) -> dict[str, Any]:
        """What a file says of the edits in its metadata."""
        return {"facts": self.n_edits, "changed": sorted(self.changed), **self.past_experts}

    @property
    def past_experts(self) -> dict[str, Any]:
        """What a file says of the experts whose keys it has, if any layer has experts."""
        found = {str(layer): list(one.experts) for layer, one in self.past.items() if one.experts}
        return {"past_experts": found} if found else {}

    def changes(self) -> bool:
        """Whether any weight is changed."""
        return any(update.changes() for update in self.updates.values())

    def past_tensors(self, *, moved: bool = False) -> dict[str, Tensor]:
        """`<layer>.past_keys` (p, m) or `<layer>.past_total` (m, m), float64, for a file.

        moved: whether with `<layer>.past_moved`, without which the next solves may round differently.
        """
        tensors: dict[str, Tensor] = {}
        for layer, one in self.past.items():
            name, tensor = ("past_total", one.total) if one.keys is None else ("past_keys", one.keys)
            assert tensor is not None
            tensors[f"{layer}.{name}"] = tensor
            if moved and one.moved is not None:
                tensors[f"{layer}.past_moved"] = one.moved
        return tensors


def read_sequence(
    path: str | Path,
    model: Decoder,
    window: Sequence[int],
    keep: bool,
    experts: Mapping[int, tuple[int, ...]],
) -> EditSequence:
    """The edits of a delta file, to go on from.

    window: the layers that the next edits change. keep: whether their solves keep what the file's keys give. experts:
    layer → those that the next edits change, at layers that have any.
    Raises UserError as `load_delta`, and where the file lacks the keys of a layer of the window or they do not fit, or
    are of other experts.
    """
    updates, tensors, about = read_delta(path, model)
    what, n_edits = f"delta '{path}'", about.get("facts", 1)
    if isinstance(n_edits, bool) or not isinstance(n_edits, int) or not 1 <= n_edits <= MOST_EDITS:
        raise UserError(f"{what}: expected the number of its edits in the metadata, got {n_edits!r}")
    if about.get("after") == "prune":
        raise UserError(f"{what}: expected the sum of the edits as they were made, got one that prune has changed")
    changed = about.get("changed", [])
    if not isinstance(changed, list) or not all(isinstance(one, str) for one in changed):
        raise UserError(f"{what}: expected the prompts that its edits change in the metadata, got {shown(changed)}")
    past = _past(tensors, about.get("past_experts", {}), what, model) if keep else {}
    for at in sorted(set(window) & set(past)):
        if past[at].experts != experts.get(at, ()):
            have, wanted = (", ".join(map(str, one)) for one in (past[at].experts, experts.get(at, ())))
            raise UserError(
                f"{what}: expected the keys of experts {wanted} at layer {at}, got those of {have}: name the same with "
                "experts, or past_keys=ignore goes on without them"
            )
    for at in sorted(set(updates) & set(experts)):
        if (SHARED in updates[at].experts) != (SHARED in experts[at]):
            raise UserError(
                f"{what}: expected edits of the shared expert and of routed ones at layer {at} in two files"
            )
    if lost := sorted({int(name.partition(".")[0]) for name in tensors} - set(window if keep else ())):
        log.warning("%s: its keys at layers %s are not kept any further, as no solve reads them", what, lost)
    if keep and (missing := [at for at in window if at not in past]):
        raise UserError(
            f"{what}: expected the keys of its edits at layers {', '.join(map(str, missing))}, which "
            f"{', '.join(SPREAD)} write for the layers they change, got none: past_keys=ignore goes on without them"
        )
    total = summed([updates])
    on_device = {at: replace(one, change=one.change.to(model.blocks[at].device)) for at, one in total.items()}
    kept = {at: past[at] for at in past if at in window}
    return EditSequence(on_device, kept, n_edits, changed=frozenset(changed))


def _past(tensors: Mapping[str, Tensor], experts: Any, what: str, model: Decoder) -> dict[int, PastKeys]:
    """experts: layer, as text → those whose keys the tensors are, as a file's metadata have them."""
    past: dict[int, PastKeys] = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.partition(".")
        fits = int(layer) < model.n_layers and tensor.ndim == 2 and tensor.dtype == torch.float64
        own = checked_experts(model, int(layer), tuple(experts.get(layer, ())), what) if fits else ()
        m = model.blocks[int(layer)].down_shape_of(own)[1] if fits else 0
        fits = fits and tensor.shape[1] == m
        if kind == "past_total":
            fits = fits and tensor.shape[0] == tensor.shape[1]
        if not fits or not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{what}: expected finite float64 keys of width {m} in {name}, got others")
        tensor = tensor.to(model.device)
        past[int(layer)] = PastKeys(None, tensor) if kind == "past_total" else PastKeys(tensor, experts=own)
    return past


@dataclass(eq=False)
class Checkpoint:
    """A file with the state of a mass edit that is not finished, from which the same edit goes on.

    models, groups: how many models, and groups of the next model, are done. sequence: the edits of the next model.
    last: those of the last model, once it is done. seconds: of editing, in the next model. The lists are the rows so
    far of the result's tables.
    """

    path: Path
    models: int = 0
    groups: int = 0
    sequence: EditSequence = field(default_factory=EditSequence)
    last: EditSequence = field(default_factory=EditSequence)
    scores: list[dict[str, Any]] = field(default_factory=list)
    prompts: list[dict[str, Any]] = field(default_factory=list)
    measures: list[dict[str, Any]] = field(default_factory=list)
    norms: list[dict[str, Any]] = field(default_factory=list)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    _saved: float = field(default_factory=time.monotonic)
    _took: float = 0.0

    @classmethod
    def read(cls, path: Path, model: Decoder) -> "Checkpoint":
        """The file's state, on the model's devices, or the state before the first edit where there is no whole file."""
        if metadata_of(path) is None:
            return cls(path)
        try:
            tensors, about = load_tensors(path)
        except UserError:  # a damaged file; what it had is computed again
            return cls(path)
        if not tensors.keys() >= set(TABLES):  # of another version
            return cls(path)
        rows = {name: _rows(tensors.pop(name)) for name in TABLES}
        parts: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            layer, _, part = name.partition(".")
            device = model.blocks[int(layer)].device if part in ("change", "bias") else model.device
            parts.setdefault(int(layer), {})[part] = tensor.to(device)
        updates = {
            at: Dense(one["change"], one.get("bias"), tuple(one["experts"].tolist() if "experts" in one else ()))
            for at, one in sorted(parts.items())
        }
        experts = about.get("past_experts", {})
        keys = {
            at: PastKeys(
                one.get("past_keys"),
                one.get("past_total"),
                one.get("past_moved"),
                tuple(experts.get(str(at), ())),
            )
            for at, one in parts.items()
            if {"past_keys", "past_total"} & one.keys()
        }
        so_far = EditSequence(updates, keys, about["n_edits"], about["unseen"], about["condition"])
        state = cls(path, about["models"], about["groups"], so_far, seconds=about["seconds"])
        for name, found in rows.items():
            setattr(state, name, found)
        return state

    def save_if_due(self) -> None:
        """Write the file, unless it was written a short time ago."""
        begun = time.monotonic()
        if begun - self._saved < max(CHECKPOINT_SECONDS, CHECKPOINT_SHARE * self._took):
            return
        try:
            self.save()
        except (OSError, UserError) as error:
            log.warning("no checkpoint is kept: %s", error)
        self._saved = time.monotonic()
        self._took = self._saved - begun

    def save(self) -> None:
        """Write the file."""
        one = self.sequence
        about = {"models": self.models, "groups": self.groups, "n_edits": one.n_edits, "condition": one.condition}
        about["seconds"] = self.seconds
        rows = {name: _bytes(getattr(self, name)) for name in TABLES}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(
            self.path,
            {**tensors_of(one.updates), **one.past_tensors(moved=True), **rows},
            {**about, "unseen": dict(one.unseen), **one.past_experts},
        )


def _bytes(rows: list[dict[str, Any]]) -> Tensor:
    """Rows as the bytes of an Arrow stream: (n,) uint8."""
    table = pa.Table.from_pylist(rows)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return torch.frombuffer(bytearray(sink.getvalue()), dtype=torch.uint8)


def _rows(stored: Tensor) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pa.ipc.open_stream(stored.numpy().tobytes()).read_all().to_pylist()
    return rows
