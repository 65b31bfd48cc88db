"""`generate`: text from a model, or from the model with an edit."""

from collections.abc import Sequence

from fasttrace.editing.applied import Delta, edited_view, updates_of
from fasttrace.models.adapter import Decoder, Model
from fasttrace.models.texts import continued
from fasttrace.settings.arguments import takes
from fasttrace.settings.base import argument, settings
from fasttrace.settings.generate import GenerateArguments


@settings("generate")
class EditedGenerateArguments(GenerateArguments):
    """Keywords of `generate`."""

    delta: Delta | None = argument(
        default=None,
        help="Edit of the model that generates: a delta file, what load_delta returns, or an edit or a result with one",
    )


@takes(EditedGenerateArguments)
def generate(model: Model, prompts: str | Sequence[str], given: EditedGenerateArguments) -> str | list[str]:
    """Continue prompts, as `model.generate` does, with an edit or without. The model's weights do not change.

    Returns the text that follows each prompt, without the prompt: a text for one prompt, a list for several.

    Raises UserError for a prompt without a token, as `load_delta`, and where the edit is applied to the model already,
    and ModelError for a prompt with more tokens than the model has positions, and with chat_template where the
    tokenizer has none.
    """
    view = model if given.delta is None else with_delta(model, given.delta)
    texts = list(continued(view, [prompts] if isinstance(prompts, str) else prompts, given))
    return texts[0] if isinstance(prompts, str) else texts


def with_delta(model: Decoder, delta: Delta) -> Decoder:
    """A view of the model with an edit. Raises the errors of `generate` about the edit."""
    return edited_view(model, updates_of(model, delta, "generate"))
