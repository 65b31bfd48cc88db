"""Checks of places to write, made before there is anything to write. They create and change nothing."""

import os
from pathlib import Path
from tempfile import TemporaryFile

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
    if not makes_folder and not os.path.lexists(path.parent):
        raise UserError(f"'{path}' cannot be written: there is no folder '{path.parent}'")
    if (reason := why_unwritable(path.parent)) is not None:
        raise UserError(f"'{path}' cannot be written: {reason}")


def check_folder(path: str | os.PathLike[str]) -> None:
    """Raises UserError where no file can be written into a folder, which may be created with its parents."""
    if (reason := why_unwritable(Path(path))) is not None:
        raise UserError(f"the folder '{path}' cannot be written to: {reason}")
