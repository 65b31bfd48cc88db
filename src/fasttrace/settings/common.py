"""Settings that tracing and editing share."""

from typing import Literal

from fasttrace.protocols import Protocol

from .base import setting, settings
from .kinds import Size

Noise = Literal["philox", "released"]


@settings("run")
class RunSettings:
    """What every computation has."""

    protocol: Protocol = setting(
        default="paper",
        help="Compute what the paper says, or what the authors' released code does where the two differ",
    )
    seed: int = setting(default=0, least=0, most=2**63 - 1, help="Seed of everything that is drawn at random")
    memory: Size = setting(
        default="1GB", names_run="never", help="Memory for activations in flight; the model's weights are not counted"
    )


@settings("noise")
class NoiseSettings:
    """How a subject is corrupted."""

    noise: Noise = setting(
        default="philox",
        names_run="always",
        help="Where the noise on the subject's embeddings comes from: philox depends on the seed, fact, sample, token "
        "and dimension only; released is numpy's RandomState(1), made afresh for every fact",
    )
    sigma: float | Literal["3sd"] | None = setting(
        default=None,
        above=0,
        names_run="always",
        help="Standard deviation of the noise: a number, or 3sd for three standard deviations of the subjects' "
        "embeddings; by default the published value of the model, and 3sd where there is none",
    )
