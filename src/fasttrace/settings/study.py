"""The tables of a study file.

[[trace]], [moments] and [[edit]] have the settings of `TraceSettings`, `MomentSettings` and `EditTable`, except those
that a study states once for all tables or determines itself (`TABLES`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fasttrace.packaged import DEFAULT_MODEL, full_name

from .base import refusal, setting, settings, settings_of
from .cluster import ClusterSettings
from .common import RunSettings
from .edit import EditingSettings, ProblemName
from .kinds import MOST_ITEMS, MOST_LAYERS, MOST_SEED, Size
from .methods import Method
from .moments import MomentSettings
from .trace import TraceSettings

ZsreForm = Literal["question", "bare"]
FactOrder = Literal["given", "interleaved", "shuffled"]
FactFormat = Literal[
    "auto",
    "rippleedits",
    "mquake",
    "knowedit",
    "easyedit",
    "counterfact",
    "known",
    "zsre",
    "relations",
    "lama",
    "pararel",
    "pairs",
    "own",
]


@settings("study", heading="Model")
class StudySettings(RunSettings, ClusterSettings):
    """The keys above the tables. They apply to every computation of the study."""

    model: str = setting(
        default=DEFAULT_MODEL,
        help=f"Hub id, folder or .gguf file of the model, or the short name {full_name(DEFAULT_MODEL)}",
    )
    dtype: Literal["float32", "tf32", "bfloat16", "float64"] = setting(
        default="float32", help="Number format to compute in"
    )
    device: str = setting(
        default="cpu", help="Device as torch names it, or auto to spread the model over GPUs, CPU and disk"
    )
    tokenizer: str | None = setting(
        default=None,
        help="Folder, .gguf file or hub id of the tokenizer, where the model has none or another is wanted",
    )
    trust_remote_code: bool = setting(
        default=False, help="Run the code of the model's repository, where transformers has no class for the model"
    )
    memory: Size = setting(default="512MB")
    tracing_window: int | None = setting(
        default=None,
        least=1,
        most=MOST_LAYERS,
        help="Tracing window in layers that the results compare edits with; by default that of each edit",
    )


@settings("facts", heading="Facts")
class FactSettings:
    """[facts]: the facts to study."""

    file: str | None = setting(
        default=None,
        help="Facts in any known format: a JSON, JSONL, CSV, TSV or Parquet file, a folder of them, or hub:owner/name; "
        "by default the built-in facts",
    )
    relation: str | None = setting(default=None, help="Only facts of this relation")
    limit: int | None = setting(default=None, least=1, most=MOST_SEED, help="At most this many facts, in order")
    order: FactOrder = setting(
        default="given",
        help="Order of the facts: that of the file; interleaved, one from each relation in rotation; or shuffled, that "
        "of hashes of their ids",
    )
    pairs: int | None = setting(
        default=None,
        least=1,
        most=MOST_ITEMS,
        help="Give each fact up to this many counterfactual subjects from the file: those of the same relation, with "
        "another true object, that take its place token for token",
    )
    zsre: ZsreForm = setting(
        default="question",
        help="Prompts of a zsRE file: question asks 'Question: … Answer:' as the paper's experiments do, bare has the "
        "question alone and is a data set of its own, zsre-bare",
    )
    format: FactFormat = setting(default="auto", help="Format of the file; auto decides by the fields of its records")
    map: Mapping[str, str] | None = setting(
        default=None,
        help="Columns of a table by the field of a fact that they are, as in prompt=question,subject=entity",
    )
    on_bad: Literal["raise", "skip"] = setting(
        default="raise", help="At a bad record: stop, or leave it out, which is said and stored"
    )
    known: bool | int = setting(
        default=True,
        least=1,
        most=MOST_SEED,
        help="Study only facts that the model knows: true for all of them, or a number for the first so many; false "
        "studies all facts",
    )


@settings("edit", heading="Edit")
class EditTable(EditingSettings):
    """[[edit]]: every method on every problem."""

    methods: Sequence[Method] = setting(default=("rome",), help="Editing methods")
    problems: Sequence[ProblemName] = setting(default=("error-injection",), help="Editing problems")
    layers: int | Sequence[int] | None = setting(
        default=None,
        least=0,
        most=MOST_LAYERS,
        help="Layers to edit as a list, as in [8] for layer 8, counted from 0; or how many as a number, as in 8 for "
        "eight layers spread evenly; by default as in edit",
    )
    set: Mapping[str, Any] | None = setting(default=None, help="Hyperparameters of the methods, by name")

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.layers == 0:
            raise refusal(self, "layers", "how many, at least 1, or a list such as [0] for layer 0", 0)


_STATED = {"model", "dtype", "device", *settings_of(RunSettings)}
_OF_MOMENTS = {"corpus", "corpus_tokens", "ridge"}
# Table → its type, and the settings of the type that are not keys of the table.
TABLES: dict[str, tuple[type, set[str]]] = {
    "study": (StudySettings, set()),
    "facts": (FactSettings, set()),
    "trace": (TraceSettings, {*_STATED, "keep"}),
    "moments": (MomentSettings, {*_STATED, "layers"}),
    "edit": (EditTable, {*_STATED, *_OF_MOMENTS, "method", "problem", "hyperparameters"}),
}


def keys(table: str) -> list[str]:
    """The keys that a table of a study file may have."""
    kind, without = TABLES[table]
    return [name for name in settings_of(kind) if name not in without]
