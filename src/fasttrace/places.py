"""The one way to write a file or a folder: what may be replaced, whether there is room, and atomic writing."""

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile, mkdtemp

from fasttrace.errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows, where no draft is swept
    fcntl = None  # type: ignore[assignment]

Name = str | os.PathLike[str]

# A draft's folder is named after the process that writes it, and as mkdtemp likes.
_DRAFT = re.compile(r"\.fasttrace-\d+-[a-z0-9_]{8}")
_LOG = re.compile(r"(.+)\.wal(\.\w+)?")
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_FULL = {
    errno.ENOSPC: "no space is left",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "it would be larger than the disk or a limit allows",
}
_STANDARD = ("stdin", "stdout", "stderr")


def why_full(error: BaseException | None) -> str | None:
    """In words, what a write has run out of, or None where the error has another cause.

    Compiled packages raise types of their own, which quote the system's words. Others fail again as they clean up.
    """
    while error is not None:
        for number, words in _FULL.items():
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                return words
        error = error.__cause__ or error.__context__
    return None


def why_unwritable(folder: Path) -> str | None:
    """Why no file can be created in `folder`, or None where one can. A missing folder would be created first."""
    try:
        folder.exists()
    except OSError as error:  # such as a name that is too long
        return error.strerror
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        return f"'{nearest}' is not a folder"
    sweep(nearest)
    try:
        # Permissions alone do not show whether the file system accepts a file, nor whether it has room.
        with TemporaryFile(dir=nearest) as file:
            file.write(bytes(4096))
            file.flush()
            return None
    except OSError as error:
        return f"no file can be created in '{nearest}' ({error.strerror})"


def why_refused(path: Name) -> str | None:
    """Why no file may be written to `path`, whatever its folder, or None where one may.

    Only a regular file is replaced, also through a link. A database, its log, a write-protected file, and a file that
    is this process's stdin, stdout or stderr are not.
    """
    if not os.fspath(path):
        return "expected the name of a file, got an empty one"
    if os.fspath(path).endswith(os.sep):
        return "expected a file, got the name of a folder"
    place = _place(path)
    log = _LOG.fullmatch(place.name)
    if log and _is_database(place.with_name(log[1])):
        return f"it is the log of the DuckDB file '{log[1]}'"
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):  # the folder's own check names it
        return None
    except OSError as error:  # such as a name that is too long, or a link that leads to itself
        return error.strerror
    if not stat.S_ISREG(found.st_mode):
        return f"expected a file, got {_KINDS.get(stat.S_IFMT(found.st_mode), 'neither file nor folder')}"
    if not (found.st_mode & 0o222 and os.access(place, os.W_OK)):
        return "it is write-protected"
    for number, name in enumerate(_STANDARD):
        if _is_open_as(number, found):
            return f"it is this command's {name}"
    if _is_database(place):
        return "it is a DuckDB file, such as a store"
    return None


def check_replaceable(path: Name) -> None:
    """Raise UserError where a file at `path` may not be replaced (`why_refused`)."""
    if (reason := why_refused(path)) is not None:
        raise UserError(f"'{path}' cannot be written: {reason}")


def check_file(path: Name, *, makes_folder: bool = False) -> None:
    """Raise UserError where no file can be written at `path`. An existing plain file is no obstacle: it is replaced.

    makes_folder: whether the writer creates a missing folder and its parents.
    """
    check_replaceable(path)
    folder = _followed(Path(path)).parent
    if not makes_folder and not os.path.lexists(folder):
        raise UserError(f"'{path}' cannot be written: there is no folder '{folder}'")
    if (reason := why_unwritable(folder)) is not None:
        raise UserError(f"'{path}' cannot be written: {reason}")


def check_folder(path: Name) -> None:
    """Raise UserError where no file can be written into the folder `path`. A missing folder would be created first."""
    if not os.fspath(path):
        raise UserError("expected the name of a folder, got an empty one")
    if (reason := why_unwritable(_followed(Path(path)))) is not None:
        raise UserError(f"the folder '{path}' cannot be written to: {reason}")


def is_same(one: Name, other: Name) -> bool:
    """Whether two paths name one file or folder, whatever their spelling. Neither needs to exist."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return _place(one) == _place(other)


@contextmanager
def replacing(path: Name, *, keep: bool = False) -> Iterator[Path]:
    """Yield a temporary path for a new file or folder, which replaces `path` when the block ends.

    Other processes see the old content or the new content, never a part of it. The new content is flushed to disk
    before they see it. Where the block raises, `path` does not change and no temporary file is left. A symbolic link
    stays a link, and a file keeps its permissions. What a killed process left beside `path` is deleted first.

    keep: whether a file that exists at `path` when the block ends is kept. The new file is then dropped.
    Raises UserError where a file at `path` may not be replaced (`why_refused`), where the file system refuses,
    and where it is full.
    """
    place = _place(path)
    try:
        with _draft_folder(place.parent) as folder:
            draft = folder / place.name
            yield draft
            for file in (draft, *draft.rglob("*")):
                if file.is_file():
                    _flush(file)
            if not keep:
                if not draft.is_dir():
                    check_replaceable(path)
                if place.exists():
                    shutil.copymode(place, draft)
                draft.replace(place)
            elif not place.exists():
                _put_if_absent(draft, place)
    except UserError:
        raise
    except Exception as error:
        reason = why_full(error)
        if reason is None and isinstance(error, OSError) and _is_ours(error, place):
            reason = error.strerror
        if reason is None:
            raise
        raise UserError(f"'{path}' cannot be written: {reason}") from error


def sweep(folder: Path) -> None:
    """Delete the drafts in `folder` whose writers are dead. A live writer holds the lock of its draft."""
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in filter(_DRAFT.fullmatch, names):
        try:
            lock = _lock(folder / name)
        except OSError:  # its writer lives, or another process sweeps it
            continue
        shutil.rmtree(folder / name, ignore_errors=True)
        os.close(lock)


@contextmanager
def _draft_folder(beside: Path) -> Iterator[Path]:
    """A new folder in `beside`, because a rename is atomic only within one file system. It is deleted at the end."""
    sweep(beside)
    lock: int | None = None
    while True:
        folder = Path(mkdtemp(dir=beside, prefix=f".fasttrace-{os.getpid()}-"))
        try:
            lock = _lock(folder)
        except (BlockingIOError, FileNotFoundError):  # another process swept it before it was locked
            continue
        except OSError:  # a file system without locks, on which no process can sweep
            pass
        break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int:
    """A descriptor that holds the lock of a draft's folder until it is closed or the process ends.

    Raises BlockingIOError where another one holds it, FileNotFoundError where the folder is gone, and another OSError
    where there are no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(folder)  # a sweeping process may have held the lock until it had deleted the folder
    except OSError:
        os.close(lock)
        raise
    return lock


def _place(path: Name) -> Path:
    """The absolute path without links. For a link that leads to nothing yet, the path that it leads to."""
    return Path(os.path.realpath(path))


def _followed(path: Path) -> Path:
    """The target of a symbolic link. Any other path is returned as it is, as messages quote it."""
    return _place(path) if path.is_symlink() else path


def _is_database(path: Path) -> bool:
    """Whether the path is a DuckDB file, by its magic bytes."""
    if not path.is_file():  # to open a pipe would wait for its writer
        return False
    try:
        with path.open("rb") as file:
            return file.read(12)[8:] == b"DUCK"
    except OSError:
        return False


def _is_open_as(number: int, found: os.stat_result) -> bool:
    """Whether the descriptor `number` of this process is open on the file."""
    try:
        return os.path.samestat(os.fstat(number), found)
    except OSError:
        return False


def _is_ours(error: OSError, place: Path) -> bool:
    """Whether an error in a block of `replacing` is about its draft or its place. A failed write names no file."""
    named = error.filename
    return named is None or str(named) == str(place) or bool(_DRAFT.search(str(named)))


def _flush(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _put_if_absent(draft: Path, place: Path) -> None:
    try:
        os.link(draft, place)
    except FileExistsError:  # another process created it first
        pass
    except OSError:
        # File systems without hard links raise various errors. After any other error, the rename fails as well.
        draft.rename(place)
