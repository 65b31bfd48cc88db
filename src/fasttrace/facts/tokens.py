"""The token ids of a fact: its prompt, the subject's position in the prompt, and its targets."""

from dataclasses import dataclass
from typing import Any

from fasttrace.errors import FactError, ModelError
from fasttrace.facts.record import Fact


@dataclass(frozen=True, slots=True)
class EncodedFact:
    """A fact as one tokenizer encodes it.

    fact: the fact.
    ids: (T,) the prompt's token ids, with a BOS where the tokenizer adds one, without a trailing EOS.
    tokens: (T,) every token decoded by itself; part of a character shows as U+FFFD.
    subject_begin, subject_end: the subject's tokens are [subject_begin, subject_end), at least one.
    target_true_ids: (K,) ids of " " + o_true as they follow the prompt.
    target_false_ids: the same for o_false, None where the fact has none.
    """

    fact: Fact
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    subject_begin: int
    subject_end: int
    target_true_ids: tuple[int, ...]
    target_false_ids: tuple[int, ...] | None

    @property
    def fact_id(self) -> str:
        """The fact's id."""
        return self.fact.fact_id


def encode_fact(tokenizer: Any, fact: Fact) -> EncodedFact:
    """Encode a fact. The subject's tokens are those that contain a character of the subject.

    tokenizer: a fast transformers tokenizer (character offsets are needed).

    Raises ModelError for a tokenizer without offsets, and FactError where no token contains a part of the subject.
    """
    text = fact.text
    ids = encode_prompt(tokenizer, text)
    subject = tokens_of(tokenizer, text, *fact.subject_span)
    if subject is None:
        raise FactError(
            f"fact {fact.fact_id}: expected a token of {text!r} with a part of the subject {fact.subject!r}, "
            f"got none from {type(tokenizer).__name__}"
        )
    false = fact.target_false
    return EncodedFact(
        fact=fact,
        ids=tuple(ids),
        tokens=tuple(tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in ids),
        subject_begin=subject[0],
        subject_end=subject[1],
        target_true_ids=tuple(encode_target(tokenizer, text, fact.target_true)),
        target_false_ids=None if false is None else tuple(encode_target(tokenizer, text, false)),
    )


def tokens_of(tokenizer: Any, text: str, begin: int, end: int) -> tuple[int, int] | None:
    """[first, past) of a prompt's tokens that contain a character of text[begin:end], or None where no token does.

    White space at the ends of text[begin:end] does not count. Raises ModelError for a tokenizer without offsets.
    """
    ids, offsets = _encode_with_offsets(tokenizer, text)
    pieces = tokenizer.convert_ids_to_tokens(ids)
    begin, end = _trim(text, begin, end)
    inside = [i for i in range(len(ids)) if _holds(text, offsets[i], pieces[i], begin, end)]
    return (inside[0], inside[-1] + 1) if inside else None


def encode_prompt(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a prompt, without the EOS (or SEP) that the tokenizer may add at the end.

    A BOS that the tokenizer adds stays, and so does a special token written in `text` itself.
    """
    if getattr(tokenizer, "is_fast", False):
        return _encode_with_offsets(tokenizer, text)[0]
    ids = list(tokenizer(text)["input_ids"])
    plain = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    for start in range(len(ids) - len(plain), -1, -1):
        if plain and ids[start : start + len(plain)] == plain:
            return ids[: start + len(plain)]
    return ids


def encode_target(tokenizer: Any, prompt_text: str, target: str) -> list[int]:
    """Token ids of " " + target as they follow the prompt.

    The prompt and the target are encoded together, and the ids after the prompt's are returned. Where a token spans the
    border, so that the prompt's ids are not a prefix (as for a prompt that ends in a space), " " + target is encoded
    alone, without special tokens.

    Raises FactError where the target has no tokens.
    """
    target = target.strip()
    if not target:
        raise FactError("target: expected at least one character, got none")
    prompt = encode_prompt(tokenizer, prompt_text)
    both = encode_prompt(tokenizer, f"{prompt_text} {target}")
    if len(both) > len(prompt) and both[: len(prompt)] == prompt:
        return both[len(prompt) :]
    alone = list(tokenizer(f" {target}", add_special_tokens=False)["input_ids"])
    if not alone:
        raise FactError(f"target {target!r}: expected at least one token, got none from the tokenizer")
    return alone


def _encode_with_offsets(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and character offsets of a prompt, without the tokens that the tokenizer adds after the text."""
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            "expected a fast tokenizer (one with a tokenizer.json), whose character offsets locate the subject, "
            f"got {type(tokenizer).__name__}"
        )
    encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    ids, added = list(encoded["input_ids"]), list(encoded["special_tokens_mask"])
    last = max((i for i, mark in enumerate(added) if not mark), default=-1)
    if last < 0:  # no text: keep the tokens that the tokenizer puts before every text
        probe = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
        last = probe.index(0) - 1 if 0 in probe else -1
    return ids[: last + 1], [(int(s), int(t)) for s, t in encoded["offset_mapping"][: last + 1]]


def _trim(text: str, begin: int, end: int) -> tuple[int, int]:
    """Characters [begin, end) without white space at either end."""
    while begin < end and text[begin].isspace():
        begin += 1
    while end > begin and text[end - 1].isspace():
        end -= 1
    return begin, end


def _holds(text: str, offsets: tuple[int, int], piece: str, begin: int, end: int) -> bool:
    """Whether a token contains a character of [begin, end).

    A space before the word does not count, because tokenizers differ in whether a token's offsets include it. A token
    that is only a word-border mark ("▁", "Ġ") does not count either, because some tokenizers give it the offsets of the
    next character.
    """
    first, past = _trim(text, *offsets)
    if first >= past:
        return False
    if piece and set(piece) <= {"▁", "Ġ"} and not {"▁", "Ġ"} & set(text[first:past]):
        return False
    return first < end and past > begin
