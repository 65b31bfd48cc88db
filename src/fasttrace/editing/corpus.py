"""The corpus of the second moments: a text file, a folder of text files, or text sampled from the model."""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fasttrace.cache import content_key, load_tensors, save_tensors
from fasttrace.cluster.crew import Crew
from fasttrace.errors import UserError
from fasttrace.models.adapter import Decoder
from fasttrace.models.generate import prefix_ids, sample_tokens, start_ids

log = logging.getLogger("fasttrace.editing")
SAMPLED_ROWS = 96  # texts per batch; each batch is drawn and stored separately
PIECE = 1 << 16  # characters tokenised at once

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Corpus(ABC):
    """A corpus of token sequences. It can be pickled, and holds no model.

    description: a text for people. corpus_hash: hash of the texts, or of the settings that they are sampled with.
    identity: the corpus's entries in a cache key. n_tokens: number of tokens used, BOS included.
    """

    description: str
    corpus_hash: str
    identity: dict[str, Any]
    n_tokens: int

    def to_sample(self, root: Path) -> int:
        """Number of tokens that `sequences` samples, because the cache folder `root` does not have them yet."""
        return 0

    @abstractmethod
    def sequences(self, crew: Crew, root: Path, progress: Progress | None = None) -> list[list[int]]:
        """The token ids of every sequence, at most sequence_length each.

        crew: samples what `root` does not have, which this process writes there.
        """


@dataclass(frozen=True, eq=False)
class TextCorpus(Corpus):
    """A corpus that was read. ids: of every sequence."""

    ids: list[list[int]]

    def sequences(self, crew: Crew, root: Path, progress: Progress | None = None) -> list[list[int]]:
        """`ids`."""
        return self.ids


@dataclass(frozen=True, eq=False)
class SampledCorpus(Corpus):
    """A corpus that the model samples. prefix: token ids before each text. length: of a text, without them."""

    prefix: list[int]
    length: int
    seed: int

    @property
    def _size(self) -> int:
        """Number of tokens of a batch of texts."""
        return (len(self.prefix) + self.length) * SAMPLED_ROWS

    def _files(self, root: Path) -> list[Path]:
        folder = root / "sampled" / self.corpus_hash
        return [folder / f"{number:06d}.safetensors" for number in range(-(-self.n_tokens // self._size))]

    def to_sample(self, root: Path) -> int:
        """Those of the batches that `root` does not have."""
        return self._size * sum(not file.is_file() for file in self._files(root))

    def sequences(self, crew: Crew, root: Path, progress: Progress | None = None) -> list[list[int]]:
        """Each text is one sequence."""
        files = self._files(root)
        missing = {number for number, file in enumerate(files) if not file.is_file()}
        drawn = crew.map(_sampled_batch, ((self.length, self.seed, number) for number in sorted(missing)))
        result: list[list[int]] = []
        used = 0
        for number, file in enumerate(files):
            if progress is not None:
                progress("sampling", used, self.n_tokens)
            if number in missing:
                ids = next(drawn)
                file.parent.mkdir(parents=True, exist_ok=True)
                save_tensors(file, {"ids": torch.tensor(ids)}, {"seed": self.seed, "batch": number})
            else:
                ids = load_tensors(file)[0]["ids"].numpy()
            for text in ids.tolist():
                sequence = [*self.prefix, *text][: self.n_tokens - used]
                if sequence:
                    result.append(sequence)
                    used += len(sequence)
        if progress is not None:
            progress("sampling", used, self.n_tokens)
        return result


def text_corpus(model: Decoder, source: Path, tokens: int, sequence_length: int, *, what: str = "corpus") -> TextCorpus:
    """The first `tokens` tokens of a text file, or of a folder's .txt files in order of name. what: its name in errors.

    Each file is cut into sequences of sequence_length. The last sequence of a file may be shorter. If the tokenizer
    adds BOS, every sequence starts with it, as a prompt does.

    Raises UserError where the file or folder does not exist or cannot be read, the folder has no .txt file, a file is
    not UTF-8, or no file has text.
    """
    texts = [(file, _read(file, what)) for file in _files(source, what)]
    digest = hashlib.sha256()
    for _, text in texts:
        raw = text.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    prefix = prefix_ids(model.tokenizer)
    sequences: list[list[int]] = []
    used = 0
    for _, text in texts:
        for sequence in _cut(_token_ids(model.tokenizer, text), sequence_length, prefix):
            sequences.append(sequence[: tokens - used])
            used += len(sequences[-1])
            if used == tokens:
                break
        if used == tokens:
            break
    if not used:
        raise UserError(f"{what} '{source}': expected at least one token, got no text")
    description = str(source)
    if used < tokens:
        description += f" (all of it: {used} tokens, of {tokens} asked for)"
        log.warning("%s '%s': expected %d tokens, got %d, which are all used", what, source, tokens, used)
    ids = hashlib.sha256(repr(sequences).encode()).hexdigest()
    corpus_hash = digest.hexdigest()
    return TextCorpus(description, corpus_hash, {"corpus": corpus_hash, "ids": ids}, used, sequences)


def sampled_corpus(model: Decoder, tokens: int, sequence_length: int, seed: int) -> SampledCorpus:
    """`tokens` tokens of text sampled from the model at temperature 1, from the whole distribution.

    Every batch of texts has its own seed and its own file in a cache folder, so later and longer runs reuse it.
    """
    prefix, start = prefix_ids(model.tokenizer)[: sequence_length - 1], start_ids(model)
    length = model.room(len(start), sequence_length - len(prefix))
    settings = {
        "sampled_by": model.model_hash,
        "dtype": model.dtype_name,
        "start": start,
        "prefix": prefix,
        "temperature": 1.0,
        "top_k": None,
        "length": length,
        "rows": SAMPLED_ROWS,
        "seed": seed,
    }
    key = content_key(settings)
    description = f"sampled from the model (temperature 1, {sequence_length} tokens a text, seed {seed})"
    return SampledCorpus(description, key, {"corpus": key}, tokens, prefix, length, seed)


def _sampled_batch(model: Decoder, length: int, seed: int, number: int) -> np.ndarray:
    """(SAMPLED_ROWS, length) int32, the texts of a batch, without their prefix."""
    return sample_tokens(model, SAMPLED_ROWS, length, seed=(seed, number)).to(torch.int32).numpy()


def _files(source: Path, what: str) -> list[Path]:
    if source.is_dir():
        files = sorted(source.glob("*.txt"))
        if not files:
            raise UserError(f"{what} folder '{source}': expected at least one .txt file, got none")
        return files
    if not source.is_file():
        raise UserError(f"{what} '{source}': expected a text file or a folder of .txt files, got neither")
    return [source]


def _read(file: Path, what: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{what} file '{file}': expected UTF-8 text, got other bytes at byte {error.start}") from error
    except OSError as error:
        raise UserError(f"{what} file '{file}' cannot be read: {error.strerror}") from error


def _token_ids(tokenizer: Any, text: str) -> Iterator[int]:
    """Yield the token ids of a text. It is tokenised in pieces, which end after a newline where possible."""
    begin = 0
    while begin < len(text):
        end = min(begin + PIECE, len(text))
        if end < len(text):
            end = text.rfind("\n", begin, end) + 1 or end
        # verbose=False suppresses the warning that a piece is longer than the model's context.
        yield from tokenizer(text[begin:end], add_special_tokens=False, verbose=False).input_ids
        begin = end


def _cut(ids: Iterator[int], length: int, prefix: Sequence[int]) -> Iterator[list[int]]:
    """Yield sequences of `length` ids that start with `prefix`. The last may be shorter."""
    run = list(prefix)
    for token in ids:
        run.append(token)
        if len(run) == length:
            yield run
            run = list(prefix)
    if len(run) > len(prefix):
        yield run
