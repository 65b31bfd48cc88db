"""The token ids of a fact: its prompt, the subject's position in the prompt, and its targets."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fasttrace.errors import FactError, ModelError, shown
from fasttrace.facts.joint import joint
from fasttrace.facts.record import Fact

# Facts whose texts are read in one call of the tokenizer. With many more, Python's garbage collector takes the gain.
READ_TOGETHER = 64
_WITH_OFFSETS = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
MOST_SPACES = 8  # characters of white space at a prompt's end that are tried one by one


@dataclass(frozen=True, slots=True)
class EncodedFact:
    """A fact as one tokenizer encodes it.

    fact: the fact.
    ids: (T,) the prompt's token ids, with a BOS where the tokenizer adds one, without a trailing EOS, and without white
        space at its end that is part of the target's first token.
    tokens: (T,) every token decoded by itself; part of a character shows as U+FFFD.
    subject_begin, subject_end: the subject's tokens are [subject_begin, subject_end), at least one.
    target_true_ids: (K,) ids of o_true as they follow the prompt, with what joins it to the prompt.
    target_false_ids: the same for o_false, None where the fact has none.
    contrast_ids: the same for `Fact.contrast`, o_false or the counterfactual answer.
    counterfactuals: the ids of each counterfactual prompt that fits: T of them, and no two prompts with the same.
    fitting: the texts of these prompts.
    misfits: why each of the others does not fit, as a clause.
    subject_cut: whether one of the subject's tokens has something else, too, besides white space.
    """

    fact: Fact
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    subject_begin: int
    subject_end: int
    target_true_ids: tuple[int, ...]
    target_false_ids: tuple[int, ...] | None
    contrast_ids: tuple[int, ...] | None = None
    counterfactuals: tuple[tuple[int, ...], ...] = ()
    fitting: tuple[str, ...] = ()
    misfits: tuple[str, ...] = ()
    subject_cut: bool = False

    @property
    def fact_id(self) -> str:
        """The fact's id."""
        return self.fact.fact_id


def encode_fact(tokenizer: Any, fact: Fact) -> EncodedFact:
    """Encode a fact. The subject's tokens are those that contain a character of the subject.

    tokenizer: a fast transformers tokenizer (character offsets are needed).

    Raises ModelError for a tokenizer without offsets, and FactError where no token contains a part of the subject, or
    both targets have the same tokens.
    """
    true, false = fact.target_true, fact.contrast
    prompt = encode_joined(tokenizer, fact.text, (true,) if false is None else (true, false), fact.target_prefix)
    subject = _place(tokenizer, prompt.text, *fact.subject_span)
    if subject is None:
        raise FactError(
            f"fact {fact.fact_id}: expected a token of {shown(prompt.text)} with a part of the subject "
            f"{shown(fact.subject)}, got none from {type(getattr(tokenizer, 'tokenizer', tokenizer)).__name__}"
        )
    if len(set(prompt.targets)) < len(prompt.targets):
        raise FactError(
            f"fact {fact.fact_id}: expected a false target that differs from the true one, got {shown(false)} and "
            f"{shown(true)}, which have the same tokens"
        )
    fitting, misfits = _counterfactuals(tokenizer, fact, prompt)
    return EncodedFact(
        fact=fact,
        ids=prompt.ids,
        tokens=tuple(tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in prompt.ids),
        subject_begin=subject[0],
        subject_end=subject[1],
        subject_cut=subject[2],
        target_true_ids=prompt.targets[0],
        target_false_ids=None if fact.target_false is None else prompt.targets[1],
        contrast_ids=None if false is None else prompt.targets[1],
        counterfactuals=tuple(fitting.values()),
        fitting=tuple(fitting),
        misfits=misfits,
    )


def encode_facts(tokenizer: Any, facts: Sequence[Fact]) -> list[EncodedFact]:
    """`encode_fact` of many facts, whose texts the tokenizer reads in few calls. Raises its errors."""
    found: list[EncodedFact] = []
    for one in encoded_or_refused(tokenizer, facts):
        if isinstance(one, FactError):
            raise one
        found.append(one)
    return found


def encoded_or_refused(tokenizer: Any, facts: Sequence[Fact]) -> Iterator[EncodedFact | FactError]:
    """`encode_facts`, with the error in place of a fact that cannot be encoded. Raises ModelError as `encode_fact`."""
    fast = getattr(tokenizer, "is_fast", False)
    for first in range(0, len(facts), READ_TOGETHER):
        part = facts[first : first + READ_TOGETHER]
        # A tokenizer without offsets is refused by the first fact.
        read = _Read(tokenizer, [text for fact in part for text in _texts(fact)]) if fast else tokenizer
        for fact in part:
            try:
                yield encode_fact(read, fact)
            except FactError as error:
                yield error


def _texts(fact: Fact) -> Iterator[str]:
    """The texts that `encode_fact` reads of most facts."""
    targets = [target.strip() for target in (fact.target_true, fact.contrast) if target is not None]
    for prompt in (fact.text, *fact.counterfactuals):
        yield prompt
        yield from (prompt + joint(prompt, target, fact.target_prefix) + target for target in targets)


class _Read:
    """A fast tokenizer that has read some texts in one call, which takes far less time than a call for each."""

    def __init__(self, tokenizer: Any, texts: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        encoded = tokenizer(list(texts), **_WITH_OFFSETS)
        names = ("input_ids", "special_tokens_mask", "offset_mapping")
        self.read = {text: {name: encoded[name][i] for name in names} for i, text in enumerate(texts)}
        self.decoded: dict[int, str] = {}

    def __call__(self, text: str, **options: Any) -> Any:
        found = self.read.get(text) if options == _WITH_OFFSETS else None
        return self.tokenizer(text, **options) if found is None else found

    def decode(self, ids: list[int], **options: Any) -> str:
        """The text of one token, as all calls here want it."""
        [token] = ids
        if token not in self.decoded:
            self.decoded[token] = self.tokenizer.decode(ids, **options)
        return self.decoded[token]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


def _counterfactuals(
    tokenizer: Any, fact: Fact, prompt: "Joined"
) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
    """({counterfactual prompt that fits: its ids}, why each of the others does not). prompt: the fact's, encoded."""
    targets = [target for target in (fact.target_true, fact.contrast) if target is not None]
    fitting: dict[str, tuple[int, ...]] = {}
    misfits = []
    for text in fact.counterfactuals:
        other = encode_joined(tokenizer, text, targets, fact.target_prefix)
        if other.ids in (prompt.ids, *fitting.values()):
            whose = "the prompt's" if other.ids == prompt.ids else "another counterfactual's"
            wanted, got = f"tokens that differ from {whose}", "the same"
        elif len(other.ids) != len(prompt.ids):
            wanted, got = f"{len(prompt.ids)} tokens as the prompt has", str(len(other.ids))
        elif other.targets != prompt.targets:
            wanted, got = "a text that the target follows with the same tokens as the prompt", "others"
        else:
            fitting[text] = other.ids
            continue
        misfits.append(f"counterfactual {shown(text)}: expected {wanted}, got {got}")
    return fitting, tuple(misfits)


def tokens_of(tokenizer: Any, text: str, begin: int, end: int) -> tuple[int, int] | None:
    """[first, past) of a prompt's tokens that contain a character of text[begin:end], or None where no token does.

    White space at the ends of text[begin:end] does not count, nor does what is past the text. Raises ModelError for a
    tokenizer without offsets.
    """
    found = _place(tokenizer, text, begin, end)
    return None if found is None else found[:2]


def _place(tokenizer: Any, text: str, begin: int, end: int) -> tuple[int, int, bool] | None:
    """As `tokens_of`, with whether one of these tokens has something else, too, besides white space."""
    ids, offsets = _encode_with_offsets(tokenizer, text)
    pieces = tokenizer.convert_ids_to_tokens(ids)
    begin, end = _trim(text, begin, min(end, len(text)))
    inside = [i for i in range(len(ids)) if _holds(text, offsets[i], pieces[i], begin, end)]
    if not inside:
        return None
    first, past = _trim(text, offsets[inside[0]][0], offsets[inside[-1]][1])
    return inside[0], inside[-1] + 1, first < begin or past > end


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


class Joined(NamedTuple):
    """A prompt and its targets as one tokenizer encodes them together.

    text: the prompt without the white space at its end that is part of the target's first token. ids: (T,) its token
    ids. targets: the ids of each target, which follow these.
    """

    text: str
    ids: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...]


def encode_joined(tokenizer: Any, prompt: str, targets: Sequence[str], prefix: str | None = None) -> Joined:
    """Encode a prompt with its targets, as the tokenizer encodes the text of both.

    prefix: what stands between them; None for what the text asks for (`joint`).

    Prompt and target are encoded together, and the ids after the prompt's are the target's. Most tokenizers merge a
    space into the word after it. So where the prompt's ids are not a prefix of the whole, white space at its end
    belongs to the targets, as little of it as will do for all of them. Where a token spans the border even so, the
    target is encoded alone, without special tokens.

    Raises FactError where a target has no tokens.
    """
    if not all(target.strip() for target in targets):
        raise FactError("target: expected at least one character, got none")
    tails = [joint(prompt, target, prefix) + target.strip() for target in targets]
    wholes = [encode_prompt(tokenizer, prompt + tail) for tail in tails]
    bare = len(prompt.rstrip())
    for kept in (*range(len(prompt), max(bare, len(prompt) - MOST_SPACES), -1), bare):
        ids = encode_prompt(tokenizer, prompt[:kept])
        follows = [len(whole) > len(ids) and whole[: len(ids)] == ids for whole in wholes]
        if all(follows):
            break
    parts = zip(follows, wholes, tails, strict=True)
    found = [whole[len(ids) :] if good else _alone(tokenizer, prompt[kept:] + tail) for good, whole, tail in parts]
    return Joined(prompt[:kept], tuple(ids), tuple(map(tuple, found)))


def _alone(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text that follows another, encoded by itself.

    Some tokenizers put a space before every text. A line break before the text keeps that space away from it.
    """
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not text[0].isspace():
        before, after = (list(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in ("\n", f"\n{text}"))
        if len(after) > len(before) and after[: len(before)] == before:
            return after[len(before) :]
    if not ids:
        raise FactError(f"target {shown(text.strip())}: expected at least one token, got none from the tokenizer")
    return ids


def _encode_with_offsets(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and character offsets of a prompt, without the tokens that the tokenizer adds after the text."""
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            "expected a fast tokenizer (one with a tokenizer.json), whose character offsets locate the subject, "
            f"got {type(tokenizer).__name__}"
        )
    encoded = tokenizer(text, **_WITH_OFFSETS)
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
