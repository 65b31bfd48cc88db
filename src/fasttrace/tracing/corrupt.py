"""Moved to models/corrupt.py."""

from fasttrace.models.corrupt import (  # noqa: F401
    NOISES,
    Corruption,
    check_sigma,
    corrupted_output,
    noise_sigma,
    released_output,
)
