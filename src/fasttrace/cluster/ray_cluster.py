"""Connects to a Ray cluster, or starts one on this machine, and says how its workers are laid out."""

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from fasttrace.errors import UserError
from fasttrace.optional import require
from fasttrace.settings.cluster import WorkerSettings

CPUS_EACH = 8  # of a worker on CPUs, where their number is left to fasttrace
ANSWER_SECONDS = 10.0


class Layout(NamedTuple):
    """How many workers there are, and what each of them has."""

    workers: int
    cpus: int
    gpus: float


class Connection(NamedTuple):
    """A connection to a cluster. address: "local" for one on this machine. dashboard: where Ray's own page is."""

    ray: Any
    address: str
    dashboard: str | None


def address_of(asked: WorkerSettings) -> str:
    """The address of the cluster that is asked for: "local" for one that is started here and ends with the command."""
    if isinstance(asked.workers, str) and asked.workers != "auto":
        return asked.workers
    return os.environ.get("RAY_ADDRESS") or "local"


@contextmanager
def connected(address: str) -> Iterator[Connection]:
    """A connection to a Ray cluster for as long as the body runs. A "local" one ends with it.

    Raises UserError where nobody answers at the address, or a Ray or Python of another version.
    """
    connection = connect(address)
    try:
        yield connection
    finally:
        disconnect()


def connect(address: str) -> Connection:
    """As `connected`, until `disconnect`."""
    ray = require("ray")
    logging.getLogger("ray").setLevel(logging.CRITICAL)  # it prints what the pool reports in its own words
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    # By default a driver that does not reach the cluster for a minute ends itself.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "600")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address != "local":
        _check_answer(address)
    else:
        options["include_dashboard"] = _has_dashboard()
    try:
        made = ray.init(address, **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0].partition(". ")[0].rstrip(".")
        if address == "local":
            raise UserError(f"workers: Ray could not be started here: {text}") from error
        hint = "" if "RAY_AUTH_MODE" in os.environ else "; if it asks for a token, set RAY_AUTH_MODE=token here too"
        raise UserError(f"workers: the Ray cluster at {address} cannot be used: {text}{hint}") from error
    dashboard = getattr(made, "dashboard_url", None)
    return Connection(ray, address, dashboard or None)


def disconnect() -> None:
    """End the connection, and a cluster that was started for it."""
    require("ray").shutdown()


def layout(ray: Any, asked: WorkerSettings, gpus: float) -> Layout:
    """How many workers the cluster has room for, and the CPUs of each.

    gpus: of each worker. Raises UserError where more workers or GPUs are asked for than there are.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    by_gpu = [int(node.get("GPU", 0) / gpus) if gpus else most for node, most in zip(nodes, cpus, strict=True)]
    there = f"{len(nodes)} machine{'s' if len(nodes) > 1 else ''} with {sum(cpus)} CPUs"
    if gpus and not any(by_gpu):
        found = [int(node.get("GPU", 0)) for node in nodes]
        raise UserError(
            f"gpus_per_worker: expected at most {max(found, default=0)}, the GPUs of a machine, got {_number(gpus)}"
        )
    if isinstance(asked.workers, int):
        room = sum(min(pair) for pair in zip(by_gpu, cpus, strict=True))
        if asked.workers > room:
            each = f" of {_number(gpus)} GPUs each" if gpus else ""
            has = f"{there} and {sum(int(node.get('GPU', 0)) for node in nodes)} GPUs" if gpus else there
            raise UserError(f"workers: expected at most {room}{each} on {has}, got {asked.workers}")
        count = asked.workers
    elif gpus:
        count = sum(by_gpu)
    else:
        count = sum(max(1, own // CPUS_EACH) for own in cpus if own)
    own_cpus = next(n for n in range(max(cpus), 0, -1) if _places(cpus, by_gpu, n) >= count)
    return Layout(count, own_cpus, gpus)


def gpus_of(asked: WorkerSettings, device: str) -> float:
    """The GPUs of each worker: those asked for, or one for a model that is not on the CPU."""
    if asked.gpus_per_worker is not None:
        return asked.gpus_per_worker
    return 0.0 if device == "cpu" else 1.0


def device_of(device: str, gpus: float) -> str:
    """The device of a worker's model. Ray shows a worker only its own GPUs."""
    if not gpus:
        return device
    return "auto" if gpus > 1 or device == "auto" else "cuda"


def _places(cpus: list[int], by_gpu: list[int], each: int) -> int:
    """How many workers with `each` CPUs there is room for."""
    return sum(min(own // each, most) for own, most in zip(cpus, by_gpu, strict=True))


def _number(gpus: float) -> str:
    return f"{gpus:g}"


def _check_answer(address: str) -> None:
    """Raise UserError where nothing listens at an address. Ray itself would wait for half a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"workers: expected a Ray cluster at {address}, but nobody answers there ({reason})") from None


def _has_dashboard() -> bool:
    """Whether the packages of Ray's dashboard are installed, as with pip install fasttrace[ray]."""
    from importlib.util import find_spec

    return all(find_spec(name) for name in ("aiohttp", "aiohttp_cors", "opencensus"))


def versions_differ(here: Mapping[str, str], there: Mapping[str, str]) -> str | None:
    """The first version that differs, as "torch 2.13.0 here and 2.11.0 there", or None."""
    for name, mine in here.items():
        if there.get(name) != mine:
            return f"{name} {mine} here and {there.get(name, 'none')} there"
    return None
