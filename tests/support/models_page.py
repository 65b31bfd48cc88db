"""Makes docs/reference/models.md, the table of every model type: `python tests/support/models_page.py` writes it.

The types, classes and clauses are those of `fasttrace models`. The layout is found by calling the blocks of the small
models that tests/models/test_every_family.py holds to transformers. tests/models/test_models_page.py compares.
"""

import textwrap
from pathlib import Path

import torch
from held_to import GRIDS, LOGITS, SCORES
from small_models import EVERY_FAMILY, small_config, small_model, trained_tokenizer

from fasttrace.models.supported import supported, unsupported, wrappers

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "models.md"
COMMAND = "python tests/support/models_page.py"
ROWS = 3  # that are computed to see what a step depends on


def variants():
    """{model type: the names in EVERY_FAMILY that have it}, with the text model's type of a multimodal config."""
    found = {}
    for name in EVERY_FAMILY:
        found.setdefault(small_config(name, 16).get_text_config(decoder=True).model_type, []).append(name)
    return found


def page(tokenizer=None):
    """The whole page."""
    by_type, tokenizer = variants(), tokenizer or trained_tokenizer()
    types = supported()
    families = len({one.adapter for one in types})
    lines = [
        "# Model types",
        "",
        *_wrapped(
            f"fasttrace drives {len(types)} model types of transformers (`model_type` in config.json) with {families} "
            "adapters. `fasttrace models` prints the types, and with `--model` the sizes of one model and the memory "
            "that it takes. This page is made from the registry and the tests' models, and a test fails where it is "
            "out of date. This command writes it:"
        ),
        "",
        '```sh title="in the source folder"',
        COMMAND,
        "```",
        "",
        *_wrapped(
            "Each type has the variants named in its row: small random models of it, with unusual sizes, in float64. "
            "Every variant is held to transformers' own model (`tests/models/test_every_family.py`):"
        ),
        "",
        f"- its logits, within {_power(LOGITS)} of the largest;",
        f"- whole grids of MLPs, attention, blocks and heads, each cell within {_power(GRIDS)} of a hooked forward;",
        f"- the probabilities after a ROME edit, within {_power(SCORES)} (relative) of those of edited weights.",
        "",
        *_wrapped(
            'The layout is what the variants\' blocks compute. What not all variants or layers have is marked "(some)".'
        ),
        "",
        "| model type | classes | positions | norms | attention | MLP | special | variants |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in types:
        names = by_type.get(one.model_type, [])
        models = [small_model(name, tokenizer, torch.float64) for name in names]
        layout = [_joined([part(model, block) for model in models for block in model.blocks]) for part in PARTS]
        cells = [f"`{one.model_type}`", one.classes, *layout, one.about, ", ".join(names)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    held = {name: _wrapper(name) for name in EVERY_FAMILY}
    lines += [
        "",
        "## Multimodal models",
        "",
        *_wrapped(
            "Given text, a multimodal model is driven as the text decoder that it holds, which is named here as in the "
            "type's default config. Only the types with a variant are held to transformers as a whole; of the others, "
            "it is their text decoder."
        ),
        "",
        "| text decoder | multimodal types | variants |",
        "|---|---|---|",
        *_grouped(
            [(one.decoder, one.model_type) for one in wrappers()],
            lambda types: ", ".join(name for name, kind in held.items() if kind in types),
        ),
        "",
        "## Types without an adapter",
        "",
        f"transformers has {len(unsupported())} more causal model types. What about each does not fit:",
        "",
        "| a model of this type | types |",
        "|---|---|",
        *_grouped([(one.reason, one.model_type) for one in unsupported()]),
    ]
    return "\n".join(lines) + "\n"


def _wrapper(name):
    """The model type of a variant's config if it is multimodal."""
    config = small_config(name, 16)
    return None if config.get_text_config(decoder=True) is config else config.model_type


def _grouped(pairs, more=None):
    """Rows of a table from pairs of what types have in common, and a type. more: types → a last cell."""
    groups = {}
    for common, name in pairs:
        groups.setdefault(common, []).append(name)
    last = (lambda types: "") if more is None else (lambda types: f" {more(types)} |")
    return [f"| {one} | {', '.join(f'`{name}`' for name in names)} |{last(names)}" for one, names in groups.items()]


def _wrapped(text):
    """A paragraph as lines."""
    return textwrap.wrap(text, 118, break_on_hyphens=False, break_long_words=False)


def _power(number):
    """1e-12 → "1e-12", for every exponent."""
    return f"{number:.0e}".replace("e-0", "e-")


def _joined(found):
    """What blocks have, each a list of words. What only some of them have is marked."""
    every = dict.fromkeys(word for words in found for word in words)
    return ", ".join(word if all(word in words for words in found) else f"{word} (some)" for word in every)


def _rows(model):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, model.width, generator=generator, dtype=torch.float64)


def _positions(model, block):
    """How positions reach a block: tables that rotate heads, ALiBi, or embeddings before the first block."""
    x, near, far = _rows(model), torch.zeros(ROWS, dtype=torch.int64), torch.full((ROWS,), 7)
    said = [] if torch.equal(model.enter(x, near), model.enter(x, far)) else ["learned"]
    (key, value), (other, _) = (block.key_value(x.clone(), model.rotary(where)) for where in (near, far))
    moved = int((key != other).any(0).any(0).sum())
    if block.alibi is not None:
        said.append("ALiBi")
    elif moved == 1 and not value[..., -1].any():
        said.append("ALiBi as a dimension of the keys")
    elif moved:
        said.append("rotary" if moved == key.shape[-1] else "rotary in a part of each head")
    return said or ["none"]


def _norms(model, block):
    """Which norm is before and after the sub-layers."""
    kind = {"rms": "RMS", "layer": "LayerNorm"}[model.norm_kind]
    x = _rows(model)
    before = not torch.equal(block.attn_norm(x), x), not torch.equal(block.mlp_norm(x), x)
    after = not torch.equal(block.attn_add(x), x), not torch.equal(block.mlp_add(x), x)
    return [f"{kind} {word}" for word, there in (("before", any(before)), ("after", any(after))) if there]


def _attention(model, block):
    """What is particular about a block's attention."""
    shared = {1: "one key for all heads", block.n_heads: "a key for each head"}
    said = [shared.get(block.n_kv_heads, "heads share keys")]
    if _is_normed(model, block):
        said.append("queries and keys normed")
    if block.sliding_window is not None:
        said.append("sliding window")
    if block.softcap is not None:
        said.append("capped scores")
    return said


def _is_normed(model, block):
    """Whether queries do not grow with the input of their projection."""
    x, tables = _rows(model), model.rotary(torch.zeros(ROWS, dtype=torch.int64))
    small, large = (block.query(x * factor, tables).norm() for factor in (1e6, 1e9))
    return float(large) < 10 * float(small)


def _mlp(model, block):
    """The kind of a block's MLP."""
    said = ["gated" if block.mlp_products > 1 else "plain", *(["beside attention"] if block.parallel else [])]
    if block.experts is not None:
        said.append("experts")
    if block.shared is not None:
        said.append("shared expert")
    return said


PARTS = (_positions, _norms, _attention, _mlp)

if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE} was written")
