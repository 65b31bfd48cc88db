"""What was once found out with a model's weights, kept in the cache, so that a command whose work is in a store need
not load them: the names of its runs, and that the model computes what fasttrace computes.

A question is the hash of everything that its answer follows from. What changes one of these asks another question, so
an answer is never out of date.
"""

import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fasttrace.cache import cache_root, content_key
from fasttrace.errors import UserError
from fasttrace.places import replacing
from fasttrace.processor import this_processor
from fasttrace.settings.base import arguments_of

MOST_BYTES = 2**32  # of the files of a question; to hash more would take longer than it may save
# Packages that an answer follows from.
BENEATH = ("torch", "transformers", "tokenizers", "safetensors", "gguf", "numpy", "lm_eval")

Stamp = tuple[int, ...]


@dataclass(frozen=True)
class Question:
    """path: where its answer is kept, None for a question that has none. stamps: what `stat` said of its files before
    they were hashed."""

    path: Path | None
    stamps: Mapping[Path, Stamp]

    def answer(self) -> dict[str, Any] | None:
        """The answer that was kept, or None where there is none, or its file is damaged."""
        if self.path is None:
            return None
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            whole = found["key"] == content_key(found["answer"])
        except (OSError, ValueError, RecursionError, LookupError, TypeError):
            return None
        return dict(found["answer"]) if whole else None

    def keep(self, answer: Mapping[str, Any]) -> None:
        """Keep an answer, if the files are still those of the question. Nothing fails where none can be kept."""
        with suppress(OSError, UserError):
            if self.path is None or any(_stamp(file) != stamp for file, stamp in self.stamps.items()):
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as draft:
                draft.write_text(json.dumps({"key": content_key(answer), "answer": answer}), encoding="utf-8")


NONE = Question(None, {})


def question(what: str, files: Sequence[Path] = (), **parts: Any) -> Question:
    """The question `what` about these files and whatever else the answer follows from: plain values and settings.

    The versions of the packages, fasttrace's own sources and the processor are part of every question. It has no
    answer where the files are too large, or cannot be read, or there is no cache folder.
    """
    try:
        stamps = {file: _stamp(file) for file in files}
        if sum(stamp[2] for stamp in stamps.values()) > MOST_BYTES:
            return NONE
        hashes = [(file.name, _sha256(file)) for file in files]
        folder = cache_root(None) / "recall"
    except (OSError, UserError):
        return NONE
    machine = {"processor": str(this_processor()), "sources": _sources(), **{name: _version(name) for name in BENEATH}}
    stated = json.loads(json.dumps(parts, default=_stated))
    return Question(folder / f"{content_key({'what': what, 'files': hashes, **machine, **stated})}.json", stamps)


def _stated(one: Any) -> Any:
    """An object as plain values: one of settings with the names of those that were given, since the others may be
    tabled, and a fact with all that tells it apart, where its `repr` is for people."""
    if hasattr(one, "given"):
        values = {name: getattr(one, name) for name in arguments_of(type(one))}
        return {"kind": type(one).__name__, "given": sorted(one.given), **values}
    if is_dataclass(one) and not isinstance(one, type):
        return {"kind": type(one).__name__, **{of.name: getattr(one, of.name) for of in fields(one) if of.repr}}
    return repr(one)


def _stamp(file: Path) -> Stamp:
    found = os.stat(file)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


@functools.cache
def _sources() -> str:
    """A hash of fasttrace's own code. Its version alone would keep answers of older code while it is developed."""
    found = hashlib.sha256()
    for folder, folders, names in os.walk(Path(__file__).parent, followlinks=True):
        folders.sort()
        for name in sorted(names):
            if name.endswith((".py", ".so", ".toml")):
                found.update(f"{name}:{_sha256(Path(folder) / name)}\n".encode())
    return found.hexdigest()
