"""A worker: one process of a Ray cluster that has the model and computes what it is asked. It never opens a store."""

import gc
import logging
import os
import platform
import socket
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from fasttrace.cache import cache_place
from fasttrace.cluster.packing import packed, unpacked
from fasttrace.errors import FasttraceError
from fasttrace.memory import lacks_memory, memory_line
from fasttrace.places import replacing
from fasttrace.version import VERSION

SHARED = 4  # values that are kept unpacked, such as plans


class About(NamedTuple):
    """A process: where it is, and what it runs. Values do not depend on the machine as long as the versions agree.

    sees: whether it sees the model's folder or file, where the driver does.
    """

    host: str
    pid: int
    versions: Mapping[str, str]
    sees: bool = True

    @classmethod
    def here(cls) -> "About":
        versions = {name: version(name) for name in ("torch", "transformers", "numpy")}
        return cls(socket.gethostname(), os.getpid(), {"fasttrace": VERSION, **versions, "python": _python()})


def _python() -> str:
    return ".".join(platform.python_version_tuple()[:2])


class Answer(NamedTuple):
    """What a worker says. kind: "value" (packed), "error" (the user's, packed), "memory" or "fault" (both texts).

    logged: (logger, level, message) of what was logged meanwhile.
    """

    kind: str
    content: Any
    logged: tuple[tuple[str, int, str], ...] = ()


class Worker:
    """The actor. folder: the driver's, where there is one of this name here. threads: of its products."""

    def __init__(self, folder: str, threads: int) -> None:
        self.threads = threads
        self.model: Any = None
        self.shared: OrderedDict[str, Any] = OrderedDict()
        with suppress(OSError):
            os.chdir(folder)

    def about(self, place: str | None) -> About:
        """Where the worker is. This comes before the model is loaded. place: of the model on the driver's disk."""
        return About.here()._replace(sees=place is None or Path(place).expanduser().exists())

    def load(self, model: Mapping[str, Any]) -> Answer:
        """Load the model. model: the arguments of `load_model`."""

        def loaded() -> str:
            import torch

            from fasttrace.models.load import load_model

            torch.set_num_threads(self.threads)
            self.model = load_model(**model)
            return str(self.model.model_hash)

        return self._answered(loaded)

    def lacks(self, files: Mapping[str, int]) -> list[str]:
        """Which of these files its cache folder lacks. files: path in the folder → size in bytes."""
        root = cache_place(None)
        return [name for name, size in files.items() if not _has(root / name, size)]

    def keep(self, name: str, content: bytes) -> None:
        """Write a file of the cache folder."""
        path = cache_place(None) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            draft.write_bytes(content)

    def call(self, function: bytes, arguments: bytes, shared: Sequence[Any] = ()) -> Answer:
        """Call a function as function(model, *shared, *arguments). All are packed.

        shared: references to bytes that many calls have in common. Each is fetched and unpacked once. Bytes that are
        lost with a machine are Ray's error, as the loss of a worker is.
        """
        import ray

        content = {one.hex(): ray.get(one) for one in shared if one.hex() not in self.shared}

        def called() -> Any:
            for key, some in content.items():
                self.shared[key] = unpacked(some, self.model)
            first = [self.shared[one.hex()] for one in shared]
            while len(self.shared) > SHARED:
                self.shared.popitem(last=False)
            return unpacked(function, self.model)(self.model, *first, *unpacked(arguments, self.model))

        return self._answered(called)

    def _answered(self, work: Callable[[], Any]) -> Answer:
        with _Heard() as heard:
            try:
                answer = Answer("value", packed(work()).content)
            except Exception as error:
                answer = _refused(error)
        # The error is gone here, and with it the frames that held what did not fit.
        if answer.kind == "memory":
            gc.collect()
            _empty_cache()
        return answer._replace(logged=tuple(heard.said))


class _Heard(logging.Handler):
    """Keeps what fasttrace logs while it is open, for the driver's log."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.said: list[tuple[str, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append((record.name, record.levelno, record.getMessage()))

    def __enter__(self) -> "_Heard":
        logging.getLogger("fasttrace").addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        logging.getLogger("fasttrace").removeHandler(self)


def _refused(error: Exception) -> Answer:
    chain: BaseException | None = error
    while chain is not None:
        if lacks_memory(chain):
            return Answer("memory", memory_line(chain))
        chain = chain.__cause__ or chain.__context__
    if isinstance(error, FasttraceError):
        return Answer("error", packed(error.with_traceback(None)).content)
    return Answer("fault", traceback.format_exc())


def _empty_cache() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _has(path: Path, size: int) -> bool:
    with suppress(OSError):
        return path.stat().st_size == size
    return False
