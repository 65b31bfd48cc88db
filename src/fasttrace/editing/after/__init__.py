"""What is done to an update once a method has made it: RECT, PRUNE, and a bound of its norm.

RECT changes the update of each edit or group of edits, before the next. PRUNE changes the sum of all edits, whenever it
is scored or written, and editing goes on from the sum without it. The bound scales the sum down after each group.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from torch import Tensor

from fasttrace.editing.after.prune import largest_singular_value, prune
from fasttrace.editing.after.rect import rect
from fasttrace.editing.delta import Dense, Edit, Update, weight_of
from fasttrace.models.adapter import Decoder
from fasttrace.settings.edit import EditingSettings

U = TypeVar("U", bound=Update)


@dataclass(frozen=True, eq=False)
class After:
    """The settings applied to updates of one model. model: without any edit."""

    model: Decoder
    settings: EditingSettings
    _largest: dict[tuple[int, tuple[int, ...]], float] = field(default_factory=dict, repr=False)

    @property
    def makes_dense(self) -> bool:
        """Whether updates become whole matrices."""
        return self.settings.after != "nothing" or self.settings.max_norm is not None

    def single(self, edit: Edit) -> Edit:
        """An edit by itself, with everything that the settings ask for."""
        if not edit.changes():
            return edit
        return replace(edit, updates=self.summed(self.bounded(self.each(self.model, edit.updates))))

    def each(self, model: Decoder, updates: Mapping[int, Update]) -> Mapping[int, Update]:
        """The updates of an edit or group of edits in `model`, which has all earlier ones: by RECT."""
        if self.settings.after != "rect":
            return updates
        found: dict[int, Update] = {}
        for at, block in model.layers(updates):
            change = updates[at].matrix().to(block.device)
            found[at] = self._with(updates[at], rect(weight_of(block, updates[at]), change, self.settings.rect_share))
        return found

    def bounded(self, updates: Mapping[int, Update]) -> Mapping[int, Update]:
        """The sum of all updates so far, where ‖ΔW‖ is at most max_norm · ‖W‖ (Frobenius) at each layer."""
        most = self.settings.max_norm
        if most is None:
            return updates
        found: dict[int, Update] = {}
        for at, block in self.model.layers(updates):
            one, change = updates[at], updates[at].matrix()
            factor = most * float(weight_of(block, one).double().norm()) / max(float(change.norm()), 1e-300)
            found[at] = one if factor >= 1.0 else self._with(one, change * factor)
        return found

    def summed(self, updates: Mapping[int, Update]) -> Mapping[int, Update]:
        """The sum of all updates as it is scored and written: by PRUNE."""
        if self.settings.after != "prune":
            return updates
        found: dict[int, Update] = {}
        for at, one in updates.items():
            if (at, one.experts) not in self._largest:
                with self.model.brought(at) as block:
                    self._largest[at, one.experts] = largest_singular_value(weight_of(block, one))
            largest = self._largest[at, one.experts]
            found[at] = self._with(one, prune(largest, one.matrix(), self.settings.prune_base))
        return found

    @staticmethod
    def _with(update: Update, change: Tensor) -> Dense:
        return Dense(change.float(), update.bias, update.experts)
