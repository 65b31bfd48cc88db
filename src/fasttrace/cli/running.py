"""The status file of a command, beside its store: what it does, for people at another terminal."""

import json
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fasttrace.errors import UserError
from fasttrace.places import replacing

STALE_SECONDS = 60.0  # after which a command that has not written counts as stopped

Status = dict[str, Any]


class StatusFile:
    """Beside the store at `path`, from the first `write` to `remove`. One that cannot be written stops no command.

    A command that runs keeps its file. Another one on the same store writes none until it is gone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.host, self.pid = socket.gethostname(), os.getpid()

    @classmethod
    def of(cls, store: str | Path) -> "StatusFile | None":
        """That of a store, or None for one that another machine serves."""
        if str(store).startswith("quack:"):
            return None
        return cls(Path(f"{os.path.realpath(store)}.status.json"))

    def write(self, status: Status) -> None:
        """Replace the file, with this process's host and pid and the time."""
        if not self._is_taken():
            updated = {"host": self.host, "pid": self.pid, "updated": datetime.now(UTC).isoformat(timespec="seconds")}
            with suppress(OSError, UserError), replacing(self.path) as draft:
                draft.write_text(json.dumps(status | updated, ensure_ascii=False, indent=2), encoding="utf-8")

    def remove(self) -> None:
        """Remove the file, and one that a killed command has left."""
        if not self._is_taken() and self.read() is not None:
            with suppress(OSError):
                self.path.unlink()

    def read(self) -> Status | None:
        """What the file says, or None where there is none that can be read."""
        try:
            status = json.loads(self.path.read_text(encoding="utf-8"))
            zones = [datetime.fromisoformat(status[name]).tzinfo for name in ("begun", "updated")]
            whole = None not in zones and isinstance(status["pid"], int) and status["pid"] > 0 and status.keys() >= KEYS
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return status if whole else None

    def _is_taken(self) -> bool:
        """Whether another command that runs has the file."""
        status = self.read()
        return status is not None and (status["host"], status["pid"]) != (self.host, self.pid) and runs(status)


KEYS = {
    "verb",
    "host",
    "pid",
    "title",
    "unit",
    "done",
    "total",
    "begun",
    "updated",
    "seconds_left",
    "retries",
    "said",
    "dashboard",
    "workers",
}


def runs(status: Status) -> bool:
    """Whether the command that wrote a status runs. Of one on another machine, only what it has written is known."""
    age = (datetime.now(UTC) - datetime.fromisoformat(status["updated"])).total_seconds()
    return age < STALE_SECONDS and (status["host"] != socket.gethostname() or _is_alive(status["pid"]))


def _is_alive(pid: int) -> bool:
    if os.name != "posix":  # where signal 0 would end the process
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is another user's
        return True
    return True
