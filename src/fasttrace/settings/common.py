"""Settings that tracing and editing share."""

from pathlib import Path
from typing import Literal

from fasttrace.protocols import Protocol

from .base import resolve, setting, settings
from .kinds import MOST_SEED, MOST_WEIGHT, Size

Noise = Literal["philox", "released"]
# The released code draws every number of its noise from NumPy.
OWN_NOISE: dict[Protocol, Noise] = {"paper": "philox", "released": "released"}


@settings("run", heading="Run")
class RunSettings:
    """Settings of every computation."""

    protocol: Protocol = setting(
        default="paper",
        help="Follow the paper, or the authors' released code where the two differ",
    )
    seed: int = setting(default=0, least=0, most=MOST_SEED, help="Seed of all random numbers")
    memory: Size = setting(
        default="1GB", names_run="never", help="Memory for activations in flight; the model's weights are not counted"
    )


@settings("noise", heading="Noise")
class NoiseSettings(RunSettings):
    """Settings of the noise that corrupts a subject."""

    noise: Noise | None = setting(
        default=None,
        names_run="always",
        help="Generator of the noise on the subject's embeddings: philox depends only on the seed, fact, sample, token "
        "and dimension; released is NumPy's RandomState(1), started afresh for every fact; by default released with "
        "protocol released, and philox otherwise",
    )
    sigma: float | Literal["3sd"] | None = setting(
        default=None,
        above=0,
        most=MOST_WEIGHT,
        names_run="always",
        help="Standard deviation of the noise: a number, or 3sd for three standard deviations of the embeddings of the "
        "subjects in sigma_facts; by default the model's published value, or 3sd if there is none",
    )
    sigma_facts: str | Path = setting(
        default="builtin",
        names_run="never",
        help="Facts whose subjects give 3sd, whichever facts are traced: builtin, or a file of facts",
    )

    def __attrs_post_init__(self) -> None:
        if self.noise is None:
            resolve(self, "noise", OWN_NOISE[self.protocol])
