"""Places to write, looked at before there is anything to write. Nothing is made, and what is there stays as it is."""

import os
from pathlib import Path
from tempfile import TemporaryFile

from fasttrace.errors import UserError


def why_unwritable(folder: Path) -> str | None:
    """Why no file can be made in a folder, or in one that is made there with its parents; None where one can."""
    try:
        folder.exists()
    except OSError as error:  # of a name that is too long, say
        return error.strerror
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not there.is_dir():
        return f"'{there}' is not a folder"
    try:
        # Rights alone do not say whether the file system takes a file.
        with TemporaryFile(dir=there):
            return None
    except OSError as error:
        return f"'{there}' takes no file ({error.strerror})"


def check_file(path: str | os.PathLike[str], *, makes_folder: bool = False) -> None:
    """Raises UserError where no file can be put at a path, in the place of one that is there.

    makes_folder: its folder and their parents are made where they are missing.
    """
    path = Path(path)
    try:
        there = path.exists()
    except OSError as error:  # of a name that is too long, say
        raise UserError(f"'{path}' cannot be written: {error.strerror}") from error
    if there and not path.is_file():
        found = "a folder" if path.is_dir() else "neither file nor folder"
        raise UserError(f"'{path}' cannot be written: expected a file, got {found}")
    if not makes_folder and not os.path.lexists(path.parent):
        raise UserError(f"'{path}' cannot be written: there is no folder '{path.parent}'")
    if (why := why_unwritable(path.parent)) is not None:
        raise UserError(f"'{path}' cannot be written: {why}")


def check_folder(path: str | os.PathLike[str]) -> None:
    """Raises UserError where no file can be put into a folder, which is made with its parents where it is missing."""
    if (why := why_unwritable(Path(path))) is not None:
        raise UserError(f"the folder '{path}' cannot be written to: {why}")
