"""Settings of who computes: this process, or workers of a Ray cluster. None of them changes a number."""

import re
from typing import Annotated, Any, Literal

from .base import refusal, setting, settings
from .kinds import MOST_ITEMS, Kind

MOST_WORKERS = 100_000


def _address(value: Any) -> str:
    """The address of a Ray cluster: ray://host:port for Ray's client, or host:port of a cluster's head."""
    if not isinstance(value, str) or not re.fullmatch(r"(ray://)?[^\s:/]+:\d{1,5}", value):
        raise ValueError
    return value


Cluster = Annotated[str, Kind("the address of a Ray cluster, as ray://host:port", _address, "ADDRESS")]


def _share(value: Any) -> tuple[int, int]:
    """ "2/16" → (2, 16)."""
    if isinstance(value, str) and (found := re.fullmatch(r"(\d{1,6})/(\d{1,6})", value)):
        value = int(found[1]), int(found[2])
    number, of = value
    if not (type(number) is type(of) is int and 1 <= number <= of <= MOST_ITEMS):
        raise ValueError
    return number, of


Shard = Annotated[tuple[int, int], Kind("i/n with i from 1 to n, as in 2/16", _share, "I/N")]


@settings("workers", heading="Machines")
class WorkerSettings:
    """Which workers compute. Their number changes no value."""

    workers: int | Literal["auto"] | Cluster | None = setting(
        default=None,
        least=1,
        most=MOST_WORKERS,
        names_run="never",
        help="Compute with workers of Ray, each with the model on its own GPUs or its part of the CPUs: a number; "
        "auto, as many as the GPUs suffice for, or one for every 8 CPUs; or the address of a cluster, as "
        "ray://host:port, for auto there. Otherwise they are on this machine, or on the cluster that RAY_ADDRESS "
        "names. By default this process computes",
    )
    gpus_per_worker: float | None = setting(
        default=None,
        least=0,
        most=1024,
        names_run="never",
        help="GPUs of each worker: several hold one model together, and 0.5 is half of one; by default 1 with a device "
        "other than cpu, and 0 with cpu",
    )

    def __attrs_post_init__(self) -> None:
        if self.gpus_per_worker is None:
            return
        if self.workers is None:
            raise refusal(self, "gpus_per_worker", "a value only with workers", "one without them")
        if self.gpus_per_worker > 1 and self.gpus_per_worker != int(self.gpus_per_worker):
            raise refusal(self, "gpus_per_worker", "a whole number, or a part of one GPU", self.gpus_per_worker)


@settings("workers", heading="Machines")
class ClusterSettings(WorkerSettings):
    """Who computes, and which share of the work."""

    shard: Shard | None = setting(
        default=None,
        names_run="never",
        help="Compute only share i of n, as in 2/16, where machines know nothing of each other: the same command with "
        "1/n to n/n and a store each does the whole, and merge joins the stores",
    )
