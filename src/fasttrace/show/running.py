"""The status file of a command, beside its store: what it does, for people at another terminal."""

import json
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
from attrs.validators import deep_iterable, gt, instance_of, optional

from fasttrace.errors import UserError
from fasttrace.places import replacing

STALE_SECONDS = 60.0  # after which a command that has not written counts as stopped

_text, _count = instance_of(str), instance_of(int)
_Text, _Count = optional(_text), optional(_count)


@attrs.frozen
class Doing:
    """What a worker does. state: as people read it, since for_seconds. done: the pieces that it has computed."""

    name: str = attrs.field(validator=_text)
    host: str = attrs.field(validator=_text)
    pid: int = attrs.field(validator=_count)
    state: str = attrs.field(validator=_text)
    for_seconds: int = attrs.field(validator=_count)
    done: int = attrs.field(validator=_count)


def _time(value: Any) -> datetime:
    """A time from a file, which has its zone."""
    found = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    if found.tzinfo is None:
        raise ValueError(value)
    return found


@attrs.frozen(kw_only=True)
class Status:
    """What a command does. title, unit, done, total: of its bar, None without one. said: the last sentences."""

    verb: str = attrs.field(validator=_text)
    host: str = attrs.field(factory=socket.gethostname, validator=_text)
    pid: int = attrs.field(factory=os.getpid, validator=[_count, gt(0)])
    title: str | None = attrs.field(default=None, validator=_Text)
    unit: str | None = attrs.field(default=None, validator=_Text)
    done: int | None = attrs.field(default=None, validator=_Count)
    total: int | None = attrs.field(default=None, validator=_Count)
    begun: datetime = attrs.field(converter=_time)
    updated: datetime = attrs.field(factory=lambda: datetime.now(UTC), converter=_time)
    seconds_left: int | None = attrs.field(default=None, validator=_Count)
    retries: int = attrs.field(default=0, validator=_count)
    said: list[str] = attrs.field(factory=list, validator=deep_iterable(_text, instance_of(list)))
    dashboard: str | None = attrs.field(default=None, validator=_Text)
    workers: list[Doing] = attrs.field(factory=list)

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Status":
        """That of a file's JSON. Raises ValueError, TypeError or KeyError where it is none."""
        workers = [Doing(**one) for one in values["workers"]]
        return cls(**{**values, "workers": workers})

    def values(self) -> dict[str, Any]:
        """Its values for JSON."""
        times = {name: getattr(self, name).isoformat(timespec="seconds") for name in ("begun", "updated")}
        return attrs.asdict(self) | times

    @property
    def is_running(self) -> bool:
        """Whether the command still runs. Of one on another machine, only what it has written is known."""
        age = (datetime.now(UTC) - self.updated).total_seconds()
        return age < STALE_SECONDS and (self.host != socket.gethostname() or _is_alive(self.pid))


class StatusFile:
    """Beside the store at `path`, from the first `write` to `remove`. One that cannot be written stops no command.

    A command that runs keeps its file. Another one on the same store writes none until that one has ended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, store: str | Path) -> "StatusFile | None":
        """That of a store, or None for one that another machine serves."""
        if str(store).startswith("quack:"):
            return None
        return cls(Path(f"{os.path.realpath(store)}.status.json"))

    def write(self, status: Status) -> None:
        """Replace the file."""
        if not self._is_anothers(status.host, status.pid):
            with suppress(OSError, UserError), replacing(self.path) as draft:
                draft.write_text(json.dumps(status.values(), ensure_ascii=False, indent=2), encoding="utf-8")

    def remove(self) -> None:
        """Remove this process's file, and one that a killed command has left."""
        if self.read() is not None and not self._is_anothers(socket.gethostname(), os.getpid()):
            with suppress(OSError):
                self.path.unlink()

    def read(self) -> Status | None:
        """What the file says, or None where there is none that can be read."""
        try:
            return Status.of(json.loads(self.path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _is_anothers(self, host: str, pid: int) -> bool:
        """Whether a command that runs in another process has the file."""
        status = self.read()
        return status is not None and (status.host, status.pid) != (host, pid) and status.is_running


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
