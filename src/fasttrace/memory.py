"""Budgets of memory: how a user writes one, and what fits into it."""

import re

from fasttrace.errors import UserError


def parse_bytes(text: str | int) -> int:
    """Bytes of "512MB", "8GB" or a plain number, units of 1024. Raises UserError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(|[kKMGT]i?B)\s*", str(text))
    if match is None or float(match[1]) <= 0:
        raise UserError(f"memory '{text}' is not a size such as 512MB or 8GB")
    unit = match[2].upper().rstrip("B").rstrip("I")
    return int(float(match[1]) * 1024 ** " KMGT".index(unit or " "))
