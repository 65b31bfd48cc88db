"""What a pool of workers would take for some pieces, by their planned costs: nothing is run."""

import heapq
from collections.abc import Sequence
from typing import NamedTuple


class Simulated(NamedTuple):
    """seconds: until the last worker has computed its last piece. idle: the share of the workers' time until then in
    which they compute nothing."""

    seconds: float
    idle: float


def simulated(
    costs: Sequence[float], speeds: Sequence[float], *, starts: Sequence[float] | None = None, driver: float = 0.0
) -> Simulated:
    """Pieces handed out in this order, each to the worker that is free first, as a pool does.

    costs: FLOPs of each piece. speeds: FLOP/s of each worker. starts: seconds until each worker is ready, None for 0.
    driver: seconds that the driver spends on a piece, one after another.
    """
    begins = [0.0] * len(speeds) if starts is None else starts
    free = [(begin, worker) for worker, begin in enumerate(begins)]
    heapq.heapify(free)
    handed_out = ended = busy = 0.0
    for cost in costs:
        ready, worker = heapq.heappop(free)
        handed_out = max(handed_out, ready) + driver
        seconds = cost / speeds[worker]
        busy += seconds
        ended = max(ended, handed_out + seconds)
        heapq.heappush(free, (handed_out + seconds, worker))
    return Simulated(ended, 1.0 - busy / (ended * len(speeds)) if ended else 0.0)
