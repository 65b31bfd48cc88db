"""Connects to a Ray cluster, or starts one on this machine, and says how its workers are laid out."""

import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
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
    """A connection to a cluster. dashboard: where Ray's own page is. own: whether it was made here, and ends here."""

    ray: Any
    dashboard: str | None
    own: bool


def address_of(asked: WorkerSettings) -> str:
    """The address of the cluster that is asked for: "local" for one that is started here and ends with the command."""
    if isinstance(asked.workers, str) and asked.workers != "auto":
        return asked.workers
    return os.environ.get("RAY_ADDRESS") or "local"


def connect(address: str) -> Connection:
    """Connect to a Ray cluster, until `disconnect`. A "local" one is started, and ends then. Where this process is
    connected already, that connection is used, whatever the address.

    Raises UserError where nobody answers at the address, or a Ray or Python of another version.
    """
    already = sys.modules.get("ray")
    if already is not None and already.is_initialized():
        return Connection(already, None, own=False)
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    if _has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # as `ray start` does; a cluster without a token takes it too
    if address != "local":
        # By default a driver that does not reach the cluster for a minute ends itself. So do the processes of a local
        # one, which must not outlive a driver that is killed.
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "600")
    ray = require("ray")
    ray._raylet.Config.initialize("")  # it reads these variables when it is imported, which may have been before
    logging.getLogger("ray").setLevel(logging.CRITICAL)  # it prints what the pool reports in its own words
    # It prints the loss of a machine to stdout, whatever log_to_driver says.
    ray._private.worker.print_to_stdstream = _not_printed
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address != "local":
        _check_answer(address)
    else:
        options["include_dashboard"] = _has_dashboard()
    try:
        with _silent(), _own_signals():
            made = ray.init(address, **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
        with suppress(Exception):
            ray.shutdown()
        text = _said(error)
        if address == "local":
            raise UserError(f"workers: Ray could not be started here: {text}") from error
        hint = "; its token may be another" if _has_token() else "; if it has a token, put it into ~/.ray/auth_token"
        raise UserError(f"workers: the Ray cluster at {address} cannot be used: {text}{hint}") from error
    dashboard = getattr(made, "dashboard_url", None)
    return Connection(ray, dashboard or None, own=True)


def disconnect() -> None:
    """End the connection, and a cluster that was started for it."""
    require("ray").shutdown()


def broken() -> tuple[type[Exception], ...]:
    """What a call of Ray raises where the connection is lost. Its client also lets errors of gRPC through."""
    grpc = sys.modules.get("grpc")
    return (ConnectionError,) if grpc is None else (ConnectionError, grpc.RpcError)


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


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing is written to stderr, neither by Python nor by Ray's C++, which has no level that silences it."""
    try:
        kept = os.dup(2)
    except OSError:  # a process without stderr
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _not_printed(*_: Any, **__: Any) -> None:
    """In place of what Ray prints to stdout, where a command's rows are."""


@contextmanager
def _own_signals() -> Iterator[None]:
    """What a signal does here stays so. Ray's own handlers would end a driver with a stack trace."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # one that Python has not set
                signal.signal(number, handler)


def _said(error: Exception) -> str:
    """What an error of Ray says, in a line. A traceback has it at its end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = lines[-1] if lines[0].endswith(":") else lines[0]
    return line.partition(". ")[0].rstrip(".")


def _has_token() -> bool:
    """Whether Ray finds a token that this user has."""
    named = (os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return any(named) or (Path.home() / ".ray" / "auth_token").is_file()


def _check_answer(address: str) -> None:
    """Raise UserError where nothing listens at an address, or not in gRPC. Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS) as one:
            is_grpc = os.environ.get("RAY_USE_TLS", "0") not in ("", "0") or _speaks_grpc(one)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"workers: expected a Ray cluster at {address}, but nobody answers there ({reason})") from None
    if not is_grpc:
        raise UserError(f"workers: expected a Ray cluster at {address}, got another program's port")


# A client of HTTP/2 begins with these words and its settings, and a server answers with a frame of type 4, its own.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + b"\4" + b"\0" + b"\0\0\0\0"


def _speaks_grpc(connection: socket.socket) -> bool:
    answer = b""
    try:
        connection.sendall(_GREETING)
        while len(answer) < 4 and (more := connection.recv(4 - len(answer))):
            answer += more
    except OSError:
        return False
    return answer[3:4] == b"\4"


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
