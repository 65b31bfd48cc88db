"""Exhibit of the first facts as the model reads them: the tokens of their prompts, with the subject's marked."""

from fasttrace.show.words import title_of
from fasttrace.store import Readable

from .exhibit import Exhibit, Prompt, Source, run_ids, several
from .naming import Row
from .relation import relation


def tokens(store: Readable) -> Exhibit | None:
    source = Source(relation, ("traced_tokens",), "traced_tokens")
    table = source.table(store)
    rows = table.to_pylist()
    if not rows:
        return None
    apart = bool(several(rows, "model"))
    return Exhibit(
        key="tokens",
        section="tracing",
        title="Facts and their tokens",
        caption="Each box is a token of the prompt, as the model’s tokenizer cuts it. The subject’s boxes are shaded "
        "and underlined. The last box is the text that is scored after the prompt.",
        source=source,
        data=table,
        runs=run_ids(rows),
        prompts=[_prompt(row, apart) for row in rows],
    )


def _prompt(row: Row, apart: bool) -> Prompt:
    """apart: whether the model has to be named."""
    inside = range(row["subject_begin"] or 0, row["subject_end"] or 0)
    name = f"{row['fact_id']} · {title_of(row['model'])}" if apart else row["fact_id"]
    return Prompt(
        name, [(_seen(text), place in inside) for place, text in enumerate(row["tokens"])], _seen(row["target"])
    )


def _seen(text: str) -> str:
    """A token's text with line breaks and tabs made visible. Its spaces stay, so that the boxes copy as the prompt."""
    return text.replace("\n", "⏎").replace("\r", "⏎").replace("\t", "⇥") or "␣"
