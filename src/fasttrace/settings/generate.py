"""Settings of generated text."""

from typing import Literal

from .base import argument, setting, settings
from .kinds import MOST_ITEMS, MOST_SEED, Size

Stop = Literal["line", "sentence"]


@settings("generate", heading="Text")
class GenerateSettings:
    """Every setting of generated text."""

    max_new_tokens: int = setting(
        default=32,
        least=1,
        most=MOST_ITEMS,
        unit="tokens",
        help="Most tokens of a text, which also ends before an end-of-text token and where the model's positions end",
    )
    stop: Stop | None = setting(
        default=None, help="End a text after its first line or sentence; by default it goes on to its last token"
    )
    top_k: int | None = setting(
        default=1,
        least=1,
        most=MOST_ITEMS,
        help="Draw each token among this many of the likeliest; 1 takes the likeliest (greedy), none draws among all",
    )
    seed: int = setting(default=0, least=0, most=MOST_SEED, help="Seed of the draws, which greedy text does not need")
    chat_template: bool = setting(
        default=False,
        help="Ask each prompt as a message by the tokenizer's chat template, which the model answers; by default the "
        "model continues the prompt as plain text, as it does a fact's",
    )
    memory: Size = setting(
        default="1GB",
        names_run="never",
        help="Memory for the texts that are generated together; the model's weights are not counted",
    )


@settings("generate")
class GenerateArguments(GenerateSettings):
    """Keywords of `Decoder.generate`."""

    settings: GenerateSettings | None = argument(
        default=None, help="Settings object; keywords add settings that it does not give"
    )
