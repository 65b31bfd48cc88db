"""The corpus of the second moments: a text file, a folder of text files, or text sampled from the model."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fasttrace.cache import content_key, load_tensors, save_tensors
from fasttrace.errors import UserError
from fasttrace.models.adapter import Decoder
from fasttrace.models.generate import prefix_ids, sample_tokens, start_ids

log = logging.getLogger("fasttrace.editing")
SAMPLED_ROWS = 96  # texts per batch; each batch is drawn and stored separately
PIECE = 1 << 16  # characters tokenised at once

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Corpus:
    """A corpus of token sequences.

    description: a text for people. corpus_hash: hash of the texts, or of the settings that they are sampled with.
    identity: the corpus's entries in a cache key. n_tokens: number of tokens used, BOS included. to_sample: number of
    tokens that are not on disk yet, which `sequences` samples. sequences(progress): the token ids of every sequence, at
    most sequence_length each.
    """

    description: str
    corpus_hash: str
    identity: dict[str, Any]
    n_tokens: int
    to_sample: int
    sequences: Callable[[Progress | None], list[list[int]]]


def text_corpus(model: Decoder, source: Path, tokens: int, sequence_length: int, *, what: str = "corpus") -> Corpus:
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
    return Corpus(description, corpus_hash, {"corpus": corpus_hash, "ids": ids}, used, 0, lambda _: sequences)


def sampled_corpus(model: Decoder, tokens: int, sequence_length: int, seed: int, root: Path) -> Corpus:
    """`tokens` tokens of text sampled from the model at temperature 1, from the whole distribution.

    Each text is one sequence. Every batch of texts has its own seed and is stored under `root`, so later and longer
    runs reuse it.
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
    folder, size = root / "sampled" / key, (len(prefix) + length) * SAMPLED_ROWS
    numbers = range(-(-tokens // size))

    def sequences(progress: Progress | None) -> list[list[int]]:
        result: list[list[int]] = []
        used = 0
        for number in numbers:
            if progress is not None:
                progress("sampling", used, tokens)
            ids = _sampled_batch(model, folder, number, length, seed)
            for text in ids:
                sequence = [*prefix, *text][: tokens - used]
                if sequence:
                    result.append(sequence)
                    used += len(sequence)
        if progress is not None:
            progress("sampling", used, tokens)
        return result

    description = f"sampled from the model (temperature 1, {sequence_length} tokens a text, seed {seed})"
    to_sample = size * sum(not _batch_file(folder, number).is_file() for number in numbers)
    return Corpus(description, key, {"corpus": key}, tokens, to_sample, sequences)


def _batch_file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.safetensors"


def _sampled_batch(model: Decoder, folder: Path, number: int, length: int, seed: int) -> list[list[int]]:
    path = _batch_file(folder, number)
    if path.is_file():
        tensors, _ = load_tensors(path)
        stored: list[list[int]] = tensors["ids"].tolist()
        return stored
    ids = sample_tokens(model, SAMPLED_ROWS, length, seed=(seed, number))
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(path, {"ids": ids.to(torch.int32)}, {"seed": seed, "batch": number})
    drawn: list[list[int]] = ids.tolist()
    return drawn


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
