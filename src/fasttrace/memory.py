"""Sizes in bytes, as people write them."""

import re

from fasttrace.errors import UserError


def parse_bytes(size: str | int) -> int:
    """Bytes of "512MB", "8GB" or a plain number; a unit is a power of 1024. Raises UserError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(|[kKMGT]i?B)\s*", str(size))
    if match is None or float(match[1]) <= 0:
        raise UserError(f"memory: expected a size such as 512MB or 8GB, got {size!r}")
    unit = match[2].upper().rstrip("B").rstrip("I")
    return int(float(match[1]) * 1024 ** " KMGT".index(unit or " "))
