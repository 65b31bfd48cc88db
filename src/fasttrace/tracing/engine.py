"""What a sweep needs of an engine: to cut its work into waves, to compute a wave, and to say what it costs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass

from fasttrace.models.adapter import Decoder
from fasttrace.models.flops import block_rate
from fasttrace.tracing.cost import Cost, item_flops, sweep_cost
from fasttrace.tracing.plan import Intervention, TraceItem, TraceWave, bytes_per_row, split_waves
from fasttrace.tracing.wavefront import WaveResult, start_wave


@dataclass(frozen=True, eq=False)
class Engine(ABC):
    """Computes the cells of a sweep.

    intervention: what cells do. sigma, noise, seed: see `embed_base`. compare: whether KL divergences are measured.
    """

    model: Decoder
    intervention: Intervention
    sigma: float
    noise: str
    seed: int
    compare: bool

    @abstractmethod
    def split(self, items: list[TraceItem], budget: int, done: Collection[int] = ()) -> list[TraceWave]:
        """The waves of the items whose numbers are not in `done`, facts in order. budget: bytes for activations.

        A sweep that continues has the waves, and thus the values, of one that was never interrupted. Raises UserError
        where the budget is too small.
        """

    @abstractmethod
    def start(self, items: list[TraceItem], wave: TraceWave, budget: int, *, tidy: bool) -> Callable[[], WaveResult]:
        """Start computing a wave. Return a function that waits for the result. tidy: as for `start_wave`."""

    @abstractmethod
    def flops(self, item: TraceItem) -> int:
        """FLOPs of one fact's passes and cells."""

    @abstractmethod
    def cost(self, items: list[TraceItem], budget: int, cells: int) -> Cost:
        """The cost of tracing the items. cells: cells of the reported grids."""

    @abstractmethod
    def rate(self, budget: int) -> float:
        """FLOP/s that this machine reaches now, as measured. budget: as for `split`."""


class WavefrontEngine(Engine):
    """fasttrace's own: it drives the model's blocks (wavefront.py)."""

    def split(self, items: list[TraceItem], budget: int, done: Collection[int] = ()) -> list[TraceWave]:
        return split_waves(items, budget // bytes_per_row(self.model), done)

    def start(self, items: list[TraceItem], wave: TraceWave, budget: int, *, tidy: bool) -> Callable[[], WaveResult]:
        drawn = (self.sigma, self.noise, self.seed)
        return start_wave(self.model, items, wave, self.intervention, *drawn, compare=self.compare, tidy=tidy)

    def flops(self, item: TraceItem) -> int:
        return item_flops(self.model, item, self.intervention, compare=self.compare)

    def cost(self, items: list[TraceItem], budget: int, cells: int) -> Cost:
        return sweep_cost(self.model, items, self.intervention, budget, cells, compare=self.compare)

    def rate(self, budget: int) -> float:
        return block_rate(self.model)
