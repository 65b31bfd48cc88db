"""The sizes of a model and the memory that tracing and editing it takes, from its config, without its weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fasttrace.editing.collect import routed_experts
from fasttrace.editing.cost import job_bytes, moment_cost
from fasttrace.editing.essence import TOKENS
from fasttrace.editing.moments import places_of
from fasttrace.editing.scores import prompt_count
from fasttrace.facts import EncodedFact, Fact, load_facts
from fasttrace.memory import parse_bytes
from fasttrace.models.adapter import Decoder
from fasttrace.models.load import outline
from fasttrace.settings.edit import EditSettings
from fasttrace.settings.methods import METHODS
from fasttrace.settings.moments import MomentSettings
from fasttrace.settings.trace import TraceSettings
from fasttrace.tracing.cost import sweep_cost
from fasttrace.tracing.plan import Intervention, bytes_per_row, make_item
from fasttrace.windows import default_layer

# Tokens of the prompt of the fact that needs are stated for, and of the subject with which it begins.
TYPICAL = 10, 3
WEIGHTS = {"float32": 4, "bfloat16": 2, "float64": 8}  # bytes of a number


class Need(NamedTuple):
    """A size of a model, or what a computation takes. value: in `unit`, "" for a plain number. what: in words."""

    name: str
    value: int
    unit: str
    what: str


@dataclass(frozen=True)
class Needs:
    """model, model_type: as given, and as in its config. dtype: of the rows. each: the sizes and needs."""

    model: str
    model_type: str
    dtype: str
    each: tuple[Need, ...]

    def __getitem__(self, name: str) -> int:
        """The value of a need."""
        return next(need.value for need in self.each if need.name == name)


def needs(source: str | Path, dtype: str = "float32") -> Needs:
    """The sizes of a model and the memory that it takes, with fasttrace's default settings.

    source, dtype: as in `load_model`. Only config.json, or the metadata of a .gguf file, and the headers of weights are
    read. The fact is one of 10 tokens with a subject of 3 at its beginning and a target of one, and the prompts of the
    first built-in fact. The sizes are those of the layer that is edited by default. For a mixture of experts m is the
    width of one expert.

    Raises ModelError as `outline`.
    """
    model = outline(source, dtype)
    return Needs(str(source), model.config.model_type, dtype, (*_sizes(model), *_memory(model)))


def _sizes(model: Decoder) -> list[Need]:
    block = model.blocks[default_layer(model.n_layers, model_type=model.config.model_type)]
    routed = block.experts
    sizes = {
        "d": (model.width, "width of the residual stream"),
        "L": (model.n_layers, "layers"),
        "H": (block.n_heads, "attention heads"),
        "kv_heads": (block.n_kv_heads, "heads of keys and values"),
        "head_dim": (block.head_dim, "width of a head"),
        "m": (block.key_width, "width of the keys of the down-projection"),
        "experts": (None if routed is None else routed.count, "experts of a layer"),
        "experts_per_row": (None if routed is None else routed.per_row, "experts that a row goes to"),
        "shared_experts": (None if routed is None else int(block.shared is not None), "experts that serve every row"),
        "V": (model.vocab_size, "rows of the unembedding"),
        "positions": (model.positions, "most tokens of a sequence"),
        "parameters": (sum(weight.numel() for weight in model.hf.parameters()), "parameters"),
    }
    return [Need(name, value, "", what) for name, (value, what) in sizes.items() if value is not None]


def _memory(model: Decoder) -> list[Need]:
    numbers = sum(weight.numel() for weight in model.hf.parameters())
    found = [Need(f"weights_{name}", numbers * size, "bytes", f"weights in {name}") for name, size in WEIGHTS.items()]
    encoded, trace = _fact(), TraceSettings()
    item = make_item(encoded, trace.windows, model.n_layers, "all", samples=trace.samples)
    row, budget = bytes_per_row(model), parse_bytes(trace.memory)
    whole = item.base_rows() + sum(map(item.cell_rows, item.cells))
    # The wave of a fact whose base passes and largest cell need more than the budget is as large as these.
    least = row * (item.base_rows() + max(map(item.cell_rows, item.cells)))
    cost = sweep_cost(model, [item], Intervention(), max(budget, least), len(item.cells))
    cells = f"{trace.samples} samples, all {len(item.cells)} cells of window {trace.windows[0]}"
    found += [
        Need("row", row, "bytes", "a traced row (one token in one pass)"),
        Need("trace_rows", whole, "rows", f"rows of a fact of {item.length} tokens with {cells}"),
        Need("trace", whole * row, "bytes", "tracing this fact in one wave, without the weights"),
        Need("trace_waves", cost.waves, "waves", f"in which --memory {trace.memory} traces it"),
        Need("trace_peak", cost.peak_bytes, "bytes", f"peak of these waves with the weights in {model.dtype_name}"),
    ]
    edit = EditSettings()
    layer = default_layer(model.n_layers, model_type=model.config.model_type)
    tail = len(encoded.ids) - encoded.subject_end + len(encoded.target_true_ids) + 1
    rows = (1 + (METHODS[edit.method].contexts or 0)) * tail + 1
    tokens = 2 * prompt_count(encoded.fact) * len(encoded.ids) + edit.essence * TOKENS
    experts = routed_experts(model, MomentSettings(layers=range(model.n_layers)))
    of_experts = ", of every expert" if layer in experts else ""
    one = moment_cost(model, [places_of([layer], experts)], 0, 0)
    every = moment_cost(model, [places_of(range(model.n_layers), experts)], 0, 0)
    return [
        *found,
        Need(
            "edit", job_bytes(model, layer, rows, tokens), "bytes", f"one {edit.method} edit at layer {layer}, scored"
        ),
        Need("moments_layer", one.disk, "bytes", "second moments of that layer, m² in float32" + of_experts),
        Need("moments", every.disk, "bytes", f"second moments of all {model.n_layers} layers"),
    ]


def _fact() -> EncodedFact:
    """The fact that needs are stated for. Its tokens have no meaning; its prompts are those of a built-in fact."""
    length, subject = TYPICAL
    fact: Fact = load_facts()[0]
    return EncodedFact(fact, (0,) * length, ("",) * length, 0, subject, (0,), None)
