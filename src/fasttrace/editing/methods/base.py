"""What MEMIT, EMMET, AlphaEdit and PMET have in common: a solve for the change of one down-projection.

Each method makes ΔW small for old knowledge and fits the new keys. So each is a regression whose kernel is k₁ᵀ G k₂:

    ΔW = [0, R] (K_aᵀ G K_a + N)⁻¹ K_aᵀ G,    K_a = [K_p, K]

G is C⁻¹, or the projection on C's null space. K_p are the keys of earlier edits, whose residual is 0, and K the new
keys. N is diagonal. It says how freely a key's value may be missed: `weight` for earlier keys, `slack` for new ones.
With N = λI and G = C⁻¹, this is MEMIT's R Kᵀ (λC + K_p K_pᵀ + K Kᵀ)⁻¹ (docs/algorithms.md, section 14).
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from fasttrace.editing.moments import Moments, Place, largest_eigenvalue, least_eigenvalue
from fasttrace.editing.wave import At
from fasttrace.errors import UserError
from fasttrace.models.adapter import Decoder
from fasttrace.settings.methods import SpreadSettings

S = TypeVar("S", bound=SpreadSettings)
K = TypeVar("K", bound=Hashable)


@dataclass(eq=False)
class PastKeys:
    """The keys of earlier edits at one layer.

    keys: (p, m) float64, or None once there are more of them than m. total: (m, m) float64, K_p K_pᵀ, if keys is None.
    moved: (p, m) float64, G k of each of the keys, or None where it is not computed yet. experts: whose keys they are,
    at a layer with experts. Those are always kept, because their total is not block-diagonal as C is.
    """

    keys: Tensor | None
    total: Tensor | None = None
    moved: Tensor | None = field(default=None, repr=False)
    experts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.keys is not None and len(self.keys) > self.keys.shape[1] and not self.experts:
            self.total, self.keys, self.moved = self.keys.T @ self.keys, None, None

    @classmethod
    def none(cls, keys: Tensor, experts: tuple[int, ...] = ()) -> "PastKeys":
        """No keys, of the width and on the device of `keys`."""
        empty = keys.new_empty((0, keys.shape[1]), dtype=torch.float64)
        return cls(empty, moved=empty, experts=experts)

    def with_keys(self, keys: Tensor, moved: Tensor) -> "PastKeys":
        """These keys and more of them. keys, moved: (n, m) float64."""
        if self.keys is None:
            assert self.total is not None
            return PastKeys(None, self.total + keys.T @ keys)
        both = None if self.moved is None else torch.cat((self.moved, moved))
        return PastKeys(torch.cat((self.keys, keys)), moved=both, experts=self.experts)


def alike(entries: Sequence[K]) -> list[tuple[K, list[int]]]:
    """Each distinct entry and the indices at which it is."""
    found: dict[K, list[int]] = {}
    for i, own in enumerate(entries):
        found.setdefault(own, []).append(i)
    return list(found.items())


Past = Mapping[int, PastKeys]  # layer → the keys of earlier edits


@dataclass(frozen=True, eq=False)
class Solved:
    """A solve for several facts at one layer: ΔW = Rᵀ rows for residuals R (n, d).

    rows: (n, m) float64. moved: (n, m) float64, G k of every new key. condition: estimate of the system's condition
    number.
    """

    rows: Tensor
    moved: Tensor
    condition: float


class Solve(ABC, Generic[S]):
    """The solve of one method with its hyperparameters. `moments` gives C, where the settings name no other file."""

    name: str
    at: At = "block"  # where δ is added
    freedom: str  # the hyperparameter that `slack` is made of

    def __init__(self, settings: S, moments: Moments | None, *, model: Decoder, places: Sequence[Place]) -> None:
        """places: all that are to be changed, ascending. Raises the errors of files that the settings name."""
        self.settings, self._moments = settings, moments

    @property
    def moments(self) -> Moments:
        """The second moments of keys. Only a solve that reads them has any."""
        assert self._moments is not None
        return self._moments

    @property
    @abstractmethod
    def weight(self) -> float:
        """N of the keys of earlier edits."""

    def share(self, left: int) -> float:
        """What the missing part of z is divided by at a layer, with `left` layers left, itself included."""
        return left

    @abstractmethod
    def slack(self, n: int) -> float:
        """N of the new keys where n facts are solved together."""

    @abstractmethod
    def moved(self, layer: int, keys: Tensor, past: Tensor | None = None, experts: tuple[int, ...] = ()) -> Tensor:
        """G k of every row k of keys (n, m): (n, m) float64.

        experts: whose keys they are, at a layer with experts, where G is block-diagonal.
        past: (m, m) float64, K_p K_pᵀ of earlier edits, or None. With it, G is (G⁻¹ + K_p K_pᵀ / weight)⁻¹.
        """

    def condition(self, layer: int, device: torch.device, experts: tuple[int, ...] = ()) -> float | None:
        """Condition number of the matrix that gives G, or None where none is inverted."""
        return None

    def alone(self, layer: int, keys: Tensor, experts: Sequence[tuple[int, ...]] = ()) -> Tensor:
        """ΔW = r rowᵀ of each fact edited alone. keys: (F, m), any float dtype → (F, m) float64 rows. experts: of each
        fact, at a layer with experts. A row is 0 where the key is."""
        moved = torch.empty(keys.shape, dtype=torch.float64, device=keys.device)
        for own, rows in alike(experts or [()] * len(keys)):
            moved[rows] = self.moved(layer, keys[rows], experts=own)
        size = self.slack(1) + (moved * keys).sum(1, keepdim=True)
        return torch.where(size == 0, 0.0, moved / size)

    def together(self, layer: int, keys: Tensor, past: PastKeys | None = None, experts: tuple[int, ...] = ()) -> Solved:
        """One solve for all facts. keys: (n, m), any float dtype. past: keys of earlier edits at this layer. experts:
        whose keys they are, at a layer with experts.

        Raises UserError where the system is singular.
        """
        new = keys.double()
        total = None if past is None else past.total
        moved = self.moved(layer, new, total, experts)
        every, all_moved, free = new, moved, [self.slack(len(new))] * len(new)
        if past is not None and past.keys is not None and len(past.keys):
            if past.moved is None:
                past.moved = self.moved(layer, past.keys, experts=experts)
            every, all_moved = torch.cat((past.keys, new)), torch.cat((past.moved, moved))
            free = [self.weight] * len(past.keys) + free
        inner = every @ all_moved.T
        inner = 0.5 * (inner + inner.T)
        inner.diagonal().add_(torch.tensor(free, dtype=inner.dtype, device=inner.device))
        lower, failed = torch.linalg.cholesky_ex(inner)
        condition = torch.inf if int(failed) else largest_eigenvalue(lower) / least_eigenvalue(lower)
        if not condition < 1.0 / (len(inner) * torch.finfo(inner.dtype).eps):
            raise self.singular(layer, len(new))
        # The last rows of the inverse are the solve with the last unit vectors, as the system is symmetric.
        own = torch.zeros(len(inner), len(new), dtype=inner.dtype, device=inner.device)
        own[-len(new) :] = torch.eye(len(new), dtype=inner.dtype, device=inner.device)
        return Solved(torch.cholesky_solve(own, lower).T @ all_moved, moved, condition)

    def singular(self, layer: int, n: int) -> UserError:
        """The error for a singular system of n new facts."""
        return UserError(
            f"{self.name}: expected a {self.freedom} large enough for {n} facts at layer {layer}, which may share "
            f"keys, got {getattr(self.settings, self.freedom):g} and a singular system"
        )
