"""Checks that a file or folder can be written, and atomic writing."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from fasttrace.errors import UserError


def why_unwritable(folder: Path) -> str | None:
    """Why no file can be created in `folder`, or None where one can. A missing folder would be created first."""
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
        return f"no file can be created in '{nearest}' ({error.strerror})"


def check_file(path: str | os.PathLike[str], *, makes_folder: bool = False) -> None:
    """Raise UserError where no file can be written at `path`. An existing file is no obstacle: it will be replaced.

    makes_folder: whether the writer creates a missing folder and its parents.
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
    """Raise UserError where no file can be written into the folder `path`. A missing folder would be created first."""
    if (reason := why_unwritable(Path(path))) is not None:
        raise UserError(f"the folder '{path}' cannot be written to: {reason}")


@contextmanager
def replacing(path: str | os.PathLike[str], *, keep: bool = False) -> Iterator[Path]:
    """Yield a temporary path for a new file or folder, which replaces `path` when the block ends.

    Other processes see the old content or the new content, never a part of it. The new content is flushed to disk
    before they see it. Where the block raises, `path` does not change and no temporary file is left. A symbolic link
    stays a link, and a file keeps its permissions.

    keep: whether a file that exists at `path` when the block ends is kept. The new file is then dropped.
    Raises OSError where the file system refuses.
    """
    place = _followed(Path(path))
    # In the same folder, because a rename is atomic only within one file system.
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
    """The target of a symbolic link. Any other path is returned as it is."""
    return path.resolve() if path.is_symlink() else path


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
