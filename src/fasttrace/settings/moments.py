"""Settings of the keys' second moments."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from .base import setting, settings
from .kinds import MOST_ITEMS, MOST_LAYERS, MOST_SEED, MOST_TOKENS, MOST_WEIGHT, Size

CORPUS_TOKENS = 100_000  # default of `tokens` here, and of `corpus_tokens` of an edit


@settings("second_moments", heading="Second moments")
class CorpusSettings:
    """Settings of the corpus and of the solves with its second moments."""

    corpus: str | Path | None = setting(
        default=None,
        names_run="always",
        help="Text to read: a UTF-8 file or a folder of .txt files in order of name; or second moments to read instead "
        "of collecting them: an .npz file of the released code or a folder of them; by default the model samples text",
    )
    ridge: float = setting(
        default=0.0,
        least=0,
        most=MOST_WEIGHT,
        names_run="always",
        help="Added to the diagonal of the second moments before a solve, as a multiple of the diagonal's mean",
    )


@settings("second_moments", heading="Second moments")
class MomentSettings(CorpusSettings):
    """Every setting of the second moments. A run's name depends on the content of the corpus, not on its path."""

    corpus: str | Path | None = setting(default=None, names_run="never", kw_only=False)
    tokens: int = setting(
        default=CORPUS_TOKENS,
        least=1,
        most=MOST_TOKENS,
        names_run="never",
        option="--corpus-tokens",
        help="Tokens to read; a shorter corpus is used whole",
    )
    layers: Sequence[int] | None = setting(
        default=None, least=0, most=MOST_LAYERS, names_run="always", help="Layers, from 0, as in 0,4,8; by default all"
    )
    experts: Literal["all", "shared"] | Sequence[int] = setting(
        default="all",
        least=0,
        most=MOST_ITEMS,
        help="Experts, at layers that have any: all, with the shared one; only the shared one; or numbers from 0, as "
        "in 3,7",
    )
    sequence_length: int = setting(
        default=128,
        least=2,
        most=MOST_ITEMS,
        unit="tokens",
        names_run="always",
        help="Length of the sequences that the text is cut into or sampled in",
    )
    seed: int = setting(default=0, least=0, most=MOST_SEED, names_run="never", help="Seed of the sampled text")
    batch_rows: int = setting(
        default=4096, least=1, most=MOST_ITEMS, unit="tokens", names_run="never", help="Size of a forward pass"
    )
    memory: Size | None = setting(
        default=None,
        names_run="never",
        help="Memory for the running sums, m² · 4 bytes per layer for keys of width m (m² · 8 beyond 256 batches), and "
        "on a CPU twice that; by default half of the free memory. Layers that do not fit together are collected in "
        "groups, which gives the same values",
    )
