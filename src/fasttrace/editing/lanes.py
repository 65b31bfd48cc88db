"""Σ k kᵀ over a corpus in one fixed order, whoever computes which part of it.

The batches of a corpus are divided into at most LANES lanes of consecutive batches. The sum of a lane begins at zero
and adds its batches in order. The total adds the lanes in order. So one process and any number of workers get the same
bits.

In a folder of `moments`, a checkpoint `partial-….safetensors` contains the total of the lanes that are done, and the
sums of the lane that one process was in the middle of.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fasttrace.cache import content_key, load_tensors, metadata_of, save_tensors
from fasttrace.cluster.crew import Alone, Crew
from fasttrace.editing.moments import Place, layer_file, width_of
from fasttrace.models.adapter import Decoder
from fasttrace.models.keys import Keys
from fasttrace.models.packed import forward, pack
from fasttrace.ops.second_moment import second_moment_

LANES = 16
CHECKPOINT_SECONDS = 20.0

Batch = list[list[int]]  # whole sequences of token ids


@dataclass(frozen=True, eq=False)
class Sums:
    """Σ k kᵀ over the first batches of a lane, or over the first lanes of a corpus.

    done: how many. sums: place → (m, m) float32 or float64. routed: place → how many tokens have keys there.
    """

    done: int
    sums: dict[Place, np.ndarray]
    routed: dict[Place, int]

    def with_lane(self, lane: "Sums") -> "Sums":
        """The total of these lanes and of the next. These sums are added to in place."""
        for place, own in self.sums.items():
            own += lane.sums[place]
        return Sums(self.done + 1, self.sums, {place: n + lane.routed[place] for place, n in self.routed.items()})

    def as_first(self) -> "Sums":
        """The sums of the first lane as the total of one lane, which can be added to."""
        # What a worker returned may be read-only, in memory that it shares.
        return Sums(1, {place: np.require(own, requirements="W") for place, own in self.sums.items()}, self.routed)


# each(done, so_far), after every batch of a lane: how many are done, and a function that returns their sums.
Each = Callable[[int, Callable[[], Sums]], None]


def cut_of(batches: Sequence[Batch]) -> str:
    """Hash of where a corpus is cut into batches, and so of its lanes."""
    return content_key({"cut": [list(map(len, batch)) for batch in batches]})


def lanes(count: int) -> list[range]:
    """The numbers of `count` batches, at least one, in min(LANES, count) lanes whose lengths differ by at most one."""
    n = min(LANES, count)
    return [range(count * i // n, count * (i + 1) // n) for i in range(n)]


def lane_sums(
    model: Decoder,
    group: Sequence[Place],
    lane: Sequence[Batch],
    dtype: torch.dtype,
    start: Sums | None = None,
    each: Each | None = None,
) -> Sums:
    """The sums of one lane.

    group: the places, ascending. start: the sums of the lane's first batches, which are not computed again. each: for a
    caller in this process.
    """
    sums, routed = {}, dict.fromkeys(group, 0) if start is None else dict(start.routed)
    for place in group:
        m = width_of(model, place)
        if start is None:
            sums[place] = torch.zeros((m, m), dtype=dtype, device=model.device)
        else:
            sums[place] = torch.tensor(start.sums[place], device=model.device)  # a copy, as `start` may be read-only

    # The pass needs no layer above the group's last, so it runs a view of the model without them.
    lower = copy.copy(model)
    lower.blocks = model.blocks[: group[-1].layer + 1]

    def add(layer: int, keys: Keys) -> None:
        for place in group:
            if place.layer == layer:
                key = keys.of_one(place.expert)
                routed[place] += len(key)
                narrow = key if key.dtype != torch.float64 else key.float()
                second_moment_(sums[place], narrow.to(sums[place].device))

    done = 0 if start is None else start.done

    def so_far() -> Sums:
        return Sums(done, {place: own.cpu().numpy() for place, own in sums.items()}, dict(routed))

    for batch in lane[done:]:
        forward(lower, pack(model, batch), on_key=add)
        done += 1
        if each is not None:
            each(done, so_far)
    return so_far()


class GroupSums:
    """The sums of a group over all batches of a corpus.

    group: the places, ascending. batches: at least one. folder: where checkpoints are kept. partial: the checkpoint to
    resume from, or None. report(tokens): called as tokens are done.
    """

    def __init__(
        self,
        group: Sequence[Place],
        batches: Sequence[Batch],
        dtype: torch.dtype,
        folder: Path,
        partial: Path | None,
        report: Callable[[int], None],
    ) -> None:
        self.group, self.batches, self.dtype, self.folder, self.report = group, batches, dtype, folder, report
        self.lanes = lanes(len(batches))
        self.tokens = list(accumulate((sum(map(len, batch)) for batch in batches), initial=0))
        self.total, self.start = (None, None) if partial is None else _read(partial, group)
        self.saved = time.monotonic()

    def collect(self, crew: Crew) -> Sums:
        """The total over all lanes. Where workers compute them, checkpoints are only made between lanes."""
        each = self._reached if isinstance(crew, Alone) else None
        self.report(self.tokens[self._first + (0 if self.start is None else self.start.done)])
        found = crew.map(lane_sums, self._items(each))
        while self._done < len(self.lanes):
            # No name keeps the sums of a lane while those of the next are computed.
            self.total = next(found).as_first() if self.total is None else self.total.with_lane(next(found))
            self._reached(0, None)
        assert self.total is not None
        return self.total

    @property
    def _done(self) -> int:
        """How many lanes are in the total."""
        return 0 if self.total is None else self.total.done

    @property
    def _first(self) -> int:
        """The number of the first batch that is not in the total."""
        return self.lanes[self._done].start if self._done < len(self.lanes) else len(self.batches)

    def _items(self, each: Each | None) -> Iterator[tuple[Any, ...]]:
        start = self.start
        for lane in self.lanes[self._done :]:
            yield self.group, [self.batches[i] for i in lane], self.dtype, start, each
            start = None

    def _reached(self, done: int, so_far: Callable[[], Sums] | None) -> None:
        """`done` batches are added after the total's lanes. so_far: gives their sums, None for no batch."""
        reached = self._first + done
        self.report(self.tokens[reached])
        if time.monotonic() - self.saved >= CHECKPOINT_SECONDS and reached < len(self.batches):
            self._save(None if so_far is None else so_far())
            self.saved = time.monotonic()

    def _save(self, lane: Sums | None) -> None:
        note: dict[str, Any] = {"places": [place.name for place in self.group]}
        path = self.folder / f"partial-{content_key(note)[:8]}.safetensors"
        note["cut"] = cut_of(self.batches)
        tensors: dict[str, torch.Tensor] = {}
        for part, own in (("total", self.total), ("lane", lane)):
            if own is not None:
                note[part] = {"done": own.done, "routed": {place.name: n for place, n in own.routed.items()}}
                tensors |= {f"{part}.{place.name}": torch.from_numpy(one) for place, one in own.sums.items()}
        save_tensors(path, tensors, note)


def _read(partial: Path, group: Sequence[Place]) -> tuple[Sums | None, Sums | None]:
    """The total and the lane of a checkpoint, for some of its places."""
    tensors, note = load_tensors(partial)

    def part(name: str) -> Sums | None:
        if name not in note:
            return None
        sums = {place: tensors[f"{name}.{place.name}"].numpy() for place in group}
        return Sums(note[name]["done"], sums, {place: note[name]["routed"][place.name] for place in group})

    return part("total"), part("lane")


def checkpoints(folder: Path, cut: str) -> Iterator[tuple[Path, list[Place]]]:
    """Yield every checkpoint of a corpus that is cut so (`cut_of`), and the places whose sums it has."""
    for partial in sorted(folder.glob("partial-*.safetensors")):
        note = metadata_of(partial) or {}
        if note.get("cut") == cut:
            yield partial, [Place.named(name) for name in note["places"]]


def tidy(folder: Path) -> None:
    """Remove checkpoints that cannot be read or whose sums are all done."""
    for partial in folder.glob("partial-*.safetensors"):
        note = metadata_of(partial) or {}
        if all(layer_file(folder, *Place.named(name)).is_file() for name in note.get("places", ())):
            partial.unlink(missing_ok=True)
