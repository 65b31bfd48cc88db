"""Prompts continued as text: `Decoder.generate`."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fasttrace.errors import ModelError, UserError, shown
from fasttrace.memory import pack_by_budget, parse_bytes
from fasttrace.models.adapter import Decoder
from fasttrace.models.generate import continue_tokens, end_ids, greedy_tokens
from fasttrace.models.stops import cut
from fasttrace.settings.arguments import takes
from fasttrace.settings.generate import GenerateArguments, GenerateSettings, Stop
from fasttrace.settings.kinds import MOST_CHARACTERS, MOST_ITEMS


@takes(GenerateArguments)
def generate(model: Decoder, prompts: str | Sequence[str], given: GenerateArguments) -> str | list[str]:
    """Continue prompts: the text that follows each, without the prompt. A text for one prompt, a list for several.

    By default the text is greedy: that of transformers' `generate(do_sample=False)`, without the penalties that a
    generation config may ask for. A prompt is tokenized as the tokenizer does by default, with BOS if it adds one.
    Prompts of one call are continued together. A drawn text depends on the seed and on the prompt's place in the list.

    Raises UserError for a prompt without a token, and ModelError for one with more tokens than the model has positions,
    or with chat_template where the tokenizer has none.
    """
    texts = list(continued(model, [prompts] if isinstance(prompts, str) else prompts, given))
    return texts[0] if isinstance(prompts, str) else texts


Decoder.generate = generate


def continued(
    model: Decoder, prompts: Sequence[str], asked: GenerateSettings, at_once: int = MOST_ITEMS
) -> Iterator[str]:
    """Yield the continuation of each prompt. at_once: the most prompts to continue together.

    Raises the errors of `generate`, all before the first text.
    """
    ids = [_prompt_ids(model, prompt, asked.chat_template) for prompt in prompts]
    for prompt in ids:
        model.check_length(len(prompt), "a prompt to continue")
    rooms = [model.room(len(prompt), asked.max_new_tokens) for prompt in ids]
    # Texts that are generated together have as many rows for keys and values as the longest.
    size = (max(map(len, ids)) + max(rooms)) * token_bytes(model)
    budget = min(parse_bytes(asked.memory), at_once * size)
    for numbers in pack_by_budget(range(len(ids)), lambda _: size, budget):
        together = [ids[i] for i in numbers]
        length = max(rooms[i] for i in numbers)
        if asked.top_k == 1:
            done = is_cut(model, asked.stop) if asked.stop is not None else None
            drawn = greedy_tokens(model, together, length, done=done)
        else:
            drawn = _sampled(model, together, length, [[asked.seed, i] for i in numbers], asked.top_k)
        for prompt, new in zip(together, drawn, strict=True):
            yield cut(text_after(model, prompt, new), asked.stop)


def _prompt_ids(model: Decoder, prompt: str, chat_template: bool) -> list[int]:
    if len(prompt) > MOST_CHARACTERS:
        raise UserError(
            f"generate: prompts: expected at most {MOST_CHARACTERS} characters in a prompt, got {len(prompt)}"
        )
    tokenizer = model.tokenizer
    if not chat_template:
        ids = list(tokenizer(prompt).input_ids)
    elif getattr(tokenizer, "chat_template", None) is None:
        raise ModelError(f"generate: chat_template: expected a tokenizer that has one, got that of '{model.name}'")
    else:
        ids = _message_ids(model, prompt)
    if not ids:
        raise UserError(f"generate: prompts: expected a text of at least one token, got {shown(prompt)}")
    return ids


def _message_ids(model: Decoder, prompt: str) -> list[int]:
    """The tokens with which the chat template asks a prompt, up to where the answer begins."""
    from jinja2 import TemplateError

    message = [{"role": "user", "content": prompt}]
    try:
        text = model.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError) as error:  # the template is the model's, and may ask for anything
        why = str(error).partition("\n")[0] or type(error).__name__
        raise ModelError(
            f"generate: chat_template: expected one that takes a message, got that of '{model.name}': {why}"
        ) from error
    # The template writes its special tokens itself.
    return list(model.tokenizer(text, add_special_tokens=False).input_ids)


def token_bytes(model: Decoder) -> int:
    """Bytes of a token in progress: its keys and values in every layer, and activations of about 8 d + 3 m numbers."""
    kept = sum(2 * block.n_kv_heads * block.head_dim for block in model.blocks)
    return (kept + 8 * model.width + 3 * model.key_width) * model.embed_weight.element_size()


def _sampled(
    model: Decoder, prompts: list[list[int]], length: int, seeds: list[list[int]], top_k: int | None
) -> list[list[int]]:
    """Drawn tokens after each prompt, up to the first end-of-text token."""
    # The last token is not read, so a text may be one token longer than the model has positions.
    total = None if model.positions is None else model.positions + 1
    rows = continue_tokens(model, prompts, length, seeds=seeds, per_seed=1, top_k=top_k, total=total)
    ends = set(end_ids(model).tolist())
    return [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in rows]


def _decoded(model: Decoder, ids: Sequence[int]) -> str:
    text: Any = model.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)


def text_after(model: Decoder, prompt: Sequence[int], new: Sequence[int]) -> str:
    """The text of the new tokens as it follows the prompt. Some tokenizers drop a space at the begin of a text."""
    before, whole = _decoded(model, prompt), _decoded(model, [*prompt, *new])
    return whole.removeprefix(before) if whole.startswith(before) else _decoded(model, new)


def is_cut(
    model: Decoder, stop: Stop, answers: Sequence[Sequence[str]] | None = None
) -> Callable[[int, Sequence[int]], bool]:
    """Whether a text with these new tokens goes beyond where it stops, so that more tokens change nothing.

    answers: of each text, as in `cut`. The function takes the number of the text and its new tokens.
    """

    def done(number: int, new: Sequence[int]) -> bool:
        text = _decoded(model, new)
        return len(cut(text, stop, () if answers is None else answers[number])) < len(text)

    return done
