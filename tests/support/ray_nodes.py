"""Ray clusters of several nodes on this machine, and commands that compute with them, for tests of what goes wrong.

A node is `ray start --block` in a session of its own. Its processes end with it, and `Nodes` ends it in any case.
"""

import atexit
import functools
import json
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
COMMAND = (sys.executable, "-c", "from fasttrace.cli import main; main()")
START_SECONDS = 120.0


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Process(NamedTuple):
    """A process as /proc has it. name: its first words. session: the pid of the session's first process."""

    pid: int
    parent: int
    session: int
    name: str
    ended: bool


def processes() -> Iterator[Process]:
    """Every process of this machine that can be read."""
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                after = (folder / "stat").read_text().rpartition(") ")[2].split()
                name = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                yield Process(int(folder.name), int(after[1]), int(after[3]), name, after[0] in "ZX")


def within(session: int) -> list[Process]:
    """The processes of a session that have not ended."""
    return [one for one in processes() if one.session == session and not one.ended]


def actors(some: list[Process]) -> list[Process]:
    """Those of the processes that are workers of fasttrace."""
    return [one for one in some if one.name.startswith("ray::Worker")]


def until(true: Callable[[], object], seconds: float = 60.0, pause: float = 0.05) -> None:
    """Wait until something is so, and fail where it is not in time."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"this was not so within {seconds:g} s"
        time.sleep(pause)


def environment(**more: str) -> dict[str, str]:
    """That of a command or a node, which has one thread and this checkout."""
    own = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own, **more}


@functools.cache
def token_file() -> Path:
    """A file with the token of all clusters of this process, since Ray reads it once."""
    place = tempfile.TemporaryDirectory(prefix="flt-token-")
    atexit.register(place.cleanup)
    path = Path(place.name) / "token"
    path.write_text(secrets.token_hex(32))
    return path


class Node:
    """A node of a cluster. started: its `ray start --block`."""

    def __init__(self, started: "subprocess.Popen[bytes]") -> None:
        self.started = started

    def processes(self) -> list[Process]:
        return within(self.started.pid)

    def workers(self) -> list[Process]:
        """The workers of fasttrace that run on it."""
        return actors(self.processes())

    def stop(self) -> None:
        """End it such that the cluster knows at once."""
        self.started.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.started.wait(20.0)
        self.kill()

    def kill(self) -> None:
        """End every process of it at once, as a machine's loss does."""
        with suppress(ProcessLookupError):
            os.kill(self.started.pid, signal.SIGKILL)
        self.started.wait()
        for _ in range(50):
            left = self.processes()
            if not left:
                return
            for one in left:
                with suppress(ProcessLookupError):
                    os.kill(one.pid, signal.SIGKILL)
            time.sleep(0.05)


class Nodes:
    """A cluster. Use it in a `with` block. folder: for Ray's files; its path must be short, for sockets are in it.

    env: of every node, beside `environment`. client: whether it has a server for Ray's client.
    """

    def __init__(self, cpus: int = 1, *, client: bool = False, **env: str) -> None:
        self.place = tempfile.TemporaryDirectory(prefix="flt-", dir="/tmp", ignore_cleanup_errors=True)
        self.folder = Path(self.place.name)
        self.env = environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token_file()), **env)
        self.port = free_port()
        self.client_port = free_port() if client else None
        self.address = f"127.0.0.1:{self.port}"
        self.nodes: list[Node] = []
        self.cpus = cpus

    def __enter__(self) -> "Nodes":
        try:
            client = () if self.client_port is None else (f"--ray-client-server-port={self.client_port}",)
            self.head = self.add("--head", f"--port={self.port}", "--include-dashboard=false", *client)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in reversed(self.nodes):
            node.kill()
        self.place.cleanup()

    def add(self, *words: str, cpus: int | None = None, prefix: tuple[str, ...] = (), **env: str) -> Node:
        """Start a node, and wait until the cluster has it. prefix: words of a program that runs it."""
        if not words:
            words = (f"--address={self.address}",)
        log = self.folder / f"node-{len(self.nodes)}.log"
        place = self.folder / f"n{len(self.nodes)}"
        place.mkdir()
        ray = (sys.executable, str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats")
        more = ("--node-ip-address=127.0.0.1", f"--num-cpus={self.cpus if cpus is None else cpus}")
        more += ("--object-store-memory=100000000", f"--temp-dir={place}")
        more += ("--dashboard-agent-listen-port=0", "--include-log-monitor=false")
        with log.open("wb") as out:
            started = subprocess.Popen(
                [*prefix, *ray, *more, *words],
                env={**self.env, **env},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        node = Node(started)
        self.nodes.append(node)

        def ready() -> bool:
            assert started.poll() is None, log.read_text()
            return "Ray runtime started" in log.read_text()

        until(ready, START_SECONDS)
        return node


class Ended(NamedTuple):
    """What a command left."""

    code: int
    stdout: str
    stderr: str


class Running:
    """A command in a session of its own, so that its local cluster ends with the test in any case."""

    def __init__(self, *words: str, cwd: Path, env: dict[str, str]) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="flt-")
        self.out, self.err = (Path(self.folder.name) / name for name in ("stdout", "stderr"))
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [*COMMAND, *words],
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self) -> str:
        """Its stderr so far."""
        return self.err.read_text()

    def ended(self, seconds: float = 300.0) -> Ended:
        """Wait for its end."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.stop()
            raise AssertionError(f"the command did not end in {seconds:g} s\n{self.said()}") from None
        return Ended(code, self.out.read_text(), self.said())

    def stop(self) -> None:
        """End it and all that it has started."""
        for one in within(self.pid):
            with suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGKILL)
        self.process.wait()
        self.folder.cleanup()


class Faults:
    """What goes wrong in workers that have `env` (see support/faulty)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        faulty = str(Path(__file__).parent / "faulty")
        self.env = {"FAULTS": str(folder), "PYTHONPATH": os.pathsep.join([faulty, environment()["PYTHONPATH"]])}
        self.clear()

    def clear(self) -> None:
        """Nothing goes wrong, and no piece has been begun."""
        for path in self.folder.iterdir():
            path.unlink()
        (self.folder / "pieces").touch()

    def set(self, name: str, value: object = "") -> None:
        (self.folder / name).write_text(str(value))

    def unset(self, name: str) -> None:
        (self.folder / name).unlink()

    def pieces(self) -> list[tuple[int, tuple[str, ...]]]:
        """(pid of the worker, keys) of every piece that was begun."""
        lines = (self.folder / "pieces").read_text().splitlines(keepends=True)
        return [(pid, tuple(keys)) for pid, keys in (json.loads(line) for line in lines if line.endswith("\n"))]


class Network:
    """Between a driver and a port of this machine. Use it in a `with` block, and connect to `port`."""

    def __init__(self, to: int) -> None:
        self.to, self.state = (socket.gethostbyname(socket.gethostname()), to), "whole"
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.open: list[socket.socket] = []

    def __enter__(self) -> "Network":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()
        self._reset()

    def cut(self, how: str) -> None:
        """Carry nothing any more. how: "silent", where every connection stays open, or "reset"."""
        self.state = how
        if how == "reset":
            self._reset()

    def mend(self) -> None:
        """Carry everything again, but what was sent meanwhile is lost, and with it the connections of that time."""
        self._reset()
        self.state = "whole"

    def _reset(self) -> None:
        while self.open:
            one = self.open.pop()
            with suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                ours, _ = self.server.accept()
            except OSError:
                return
            if self.state == "reset":
                ours.close()
                continue
            self.open.append(ours)
            if self.state == "whole":
                theirs = socket.create_connection(self.to)
                self.open.append(theirs)
                for pair in ((ours, theirs), (theirs, ours)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while some := source.recv(1 << 16):
                if self.state == "whole":
                    target.sendall(some)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)
