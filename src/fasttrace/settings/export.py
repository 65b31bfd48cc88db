"""Settings of the folder that an edit is exported to."""

from typing import Literal

from .base import refusal, setting, settings
from .kinds import MOST_ITEMS


@settings("export", heading="Output")
class ExportSettings:
    """Every setting of an export."""

    format: Literal["model", "peft"] = setting(
        default="model",
        names_run="never",
        help="model: the whole edited model, which transformers loads; peft: only the edit, as a LoRA adapter, which "
        "PEFT, transformers and vLLM load onto the unedited model",
    )
    rank: int | None = setting(
        default=None,
        least=1,
        most=MOST_ITEMS,
        names_run="never",
        help="With peft, the highest rank of the adapter, to which a change of higher rank is reduced; by default the "
        "rank that the edit has",
    )

    def __attrs_post_init__(self) -> None:
        if self.rank is not None and self.format != "peft":
            raise refusal(self, "rank", "a rank only with format peft", f"one with format {self.format}")
