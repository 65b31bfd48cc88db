"""Words of pictures: of metrics, interventions, token roles and tokens."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from fasttrace.packaged import PACKAGED


class Metric(NamedTuple):
    """What an effect is made of. name: on an axis. lost: what the corruption takes from it. unit: "" for none. column:
    the start of the names of its columns in the store."""

    name: str
    lost: str
    unit: str
    column: str


METRICS = {
    "probability": Metric("p(o_true)", "p_clean − p_noised", "", "p"),
    "log-probability": Metric("log p(o_true)", "log p_clean − log p_noised", "nats", "logprob"),
    "logit-difference": Metric("the logit difference", "the lost logit difference", "logits", "logit_diff"),
    "kl": Metric("the KL divergence from the clean pass", "the noised KL divergence", "nats", "kl"),
}

# Method → what happens to a cell of its grid.
DONE = {"denoise": "restored", "attribution": "restored", "noise": "corrupted", "zero": "zeroed"}

# Token role → its words, in the order of a prompt.
ROLE_WORDS = {
    "first-subject": "first subject token",
    "middle-subject": "middle subject tokens",
    "last-subject": "last subject token",
    "first-after": "first token after it",
    "further": "further tokens",
    "last-prompt": "last prompt token",
}


def escaped(value: Any) -> Any:
    """A text with its line breaks and other control characters escaped, so that it is a line. Others as they are."""
    if not isinstance(value, str) or value.isprintable():
        return value
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in value)


def visible(token: str) -> str:
    """A token's text without outer spaces, with line breaks and tabs made visible, or ␣ if nothing remains."""
    text = escaped(token.strip(" ").replace("\n", "⏎").replace("\t", "⇥").replace("\r", "⏎"))
    return text or "␣"


def cut(text: str, most: int = 32) -> str:
    """A text of at most so many characters, which ends in … where more were there."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def count(number: int, one: str, more: str | None = None) -> str:
    """ "1 fact", "2,430 cells"."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def how_traced(model: str, module: str, method: str, corruption: str, windows: Iterable[int]) -> tuple[str, ...]:
    """What was traced and how, in words: model, module, method, the corruption where it is not noise, windows."""
    sizes = list(windows)
    other = () if corruption == "noise" else (corruption,)
    return (title_of(model), module, method, *other, f"window{'s' * (len(sizes) > 1)} {', '.join(map(str, sizes))}")


def short_name(model: str) -> str:
    """A model's name without the folders of this machine: of a path, only the last part."""
    path = Path(model)
    return path.name if path.is_absolute() or model.startswith(("./", "../", "~")) else model


def title_of(model: str) -> str:
    """A model's name as a picture shows it: of a short name, the weights that it stands for."""
    return PACKAGED[model].title if model in PACKAGED else short_name(model)
