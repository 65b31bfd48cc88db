"""Settings of the keys' second moments."""

from collections.abc import Sequence
from pathlib import Path

from .base import setting, settings
from .kinds import Size

CORPUS_TOKENS = 100_000  # of `tokens` here, and of `corpus_tokens` where an edit collects its own


@settings("second_moments")
class CorpusSettings:
    """What is read, and how it is used."""

    corpus: str | Path | None = setting(
        default=None,
        names_run="always",
        help="A UTF-8 text file or a folder of .txt files (in order of name); by default text that the model samples",
    )
    ridge: float = setting(
        default=0.0,
        least=0,
        names_run="always",
        help="Added to the second moments' diagonal when they are solved with, as a multiple of its mean",
    )


@settings("second_moments")
class MomentSettings(CorpusSettings):
    """Every setting of the second moments. The store names them by what was read, not by where it lay."""

    corpus: str | Path | None = setting(default=None, names_run="never", kw_only=False)
    tokens: int = setting(
        default=CORPUS_TOKENS,
        least=1,
        names_run="never",
        option="--corpus-tokens",
        help="Tokens to read; a corpus with fewer is used whole",
    )
    layers: Sequence[int] | None = setting(
        default=None, least=0, names_run="always", help="Layers, from 0, as in 0,4,8; by default all"
    )
    sequence_length: int = setting(
        default=128, least=2, unit="tokens", names_run="always", help="What a forward pass sees together"
    )
    seed: int = setting(default=0, least=0, names_run="never", help="Seed of sampled text")
    batch_rows: int = setting(
        default=4096, least=1, unit="tokens", names_run="never", help="How much one forward pass takes"
    )
    memory: Size | None = setting(
        default=None,
        names_run="never",
        help="Memory for the running sums, m² · 4 bytes a layer (8 beyond 256 batches); by default half of what is "
        "free. Layers that do not fit together are collected one group after another, with the same values",
    )
