"""Places to write: checks that something can be written there, and atomic writing."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from fasttrace.errors import UserError


def why_unwritable(folder: Path) -> str | None:
    """Why no file can be created in `folder`, which may itself be created with its parents; None where one can."""
    try:
        folder.exists()
    except OSError as error:  # such as a name that is too long
        return error.strerror
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        return f"'{nearest}' is not a folder"
    try:
        # Permissions alone do not show whether the file system accepts a file.
        with TemporaryFile(dir=nearest):
            return None
    except OSError as error:
        return f"'{nearest}' takes no file ({error.strerror})"


def check_file(path: str | os.PathLike[str], *, makes_folder: bool = False) -> None:
    """Raises UserError where no file can be written at `path`. A file that exists may be replaced.

    makes_folder: the writer will create the folder and its parents where they are missing.
    """
    path = Path(path)
    try:
        exists = path.exists()
    except OSError as error:  # such as a name that is too long
        raise UserError(f"'{path}' cannot be written: {error.strerror}") from error
    if exists and not path.is_file():
        found = "a folder" if path.is_dir() else "neither file nor folder"
        raise UserError(f"'{path}' cannot be written: expected a file, got {found}")
    folder = _followed(path).parent
    if not makes_folder and not os.path.lexists(folder):
        raise UserError(f"'{path}' cannot be written: there is no folder '{folder}'")
    if (reason := why_unwritable(folder)) is not None:
        raise UserError(f"'{path}' cannot be written: {reason}")


def check_folder(path: str | os.PathLike[str]) -> None:
    """Raises UserError where no file can be written into a folder, which may be created with its parents."""
    if (reason := why_unwritable(Path(path))) is not None:
        raise UserError(f"the folder '{path}' cannot be written to: {reason}")


@contextmanager
def replacing(path: str | os.PathLike[str], *, keep: bool = False) -> Iterator[Path]:
    """Yields a path to write a new file or folder to, which takes the place of `path` when the block ends.

    Other processes see the old content or the new, never a part of it, and the new content is on the disk before it
    is seen. Where the block raises, `path` stays as it was and nothing is left beside it. A symbolic link stays a
    link, and a file keeps its permissions.

    keep: a file that is at `path` by the end of the block stays, and the new one is dropped.
    Raises OSError where the file system refuses.
    """
    place = _followed(Path(path))
    # Beside its place, because a rename is atomic only within one file system.
    with TemporaryDirectory(dir=place.parent, prefix=".fasttrace-") as folder:
        draft = Path(folder) / place.name
        yield draft
        for file in (draft, *draft.rglob("*")):
            if file.is_file():
                _flush(file)
        if not keep:
            if place.exists():
                shutil.copymode(place, draft)
            draft.replace(place)
        elif not place.exists():
            _put_if_absent(draft, place)


def _followed(path: Path) -> Path:
    """Where a symbolic link leads; any other path itself."""
    return path.resolve() if path.is_symlink() else path


def _flush(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _put_if_absent(draft: Path, place: Path) -> None:
    try:
        os.link(draft, place)
    except FileExistsError:  # another process was first
        pass
    except OSError:
        # Some file systems have no hard links, and say so by various errors; where it is another fault, this fails too.
        draft.rename(place)
