"""What an edit breaks: measures of the edited model as a whole, beside the scores of its facts.

These are the norms of the changed weights, the perplexity of a held-out text, the entropy of the n-grams of generated
texts, and tasks of lm-evaluation-harness (docs/how-to/mass-edits.md).
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, zip_longest
from math import log2
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from fasttrace.cache import cache_root
from fasttrace.cluster.crew import Alone
from fasttrace.editing.applied import apply_delta
from fasttrace.editing.corpus import Corpus, sampled_corpus, text_corpus
from fasttrace.editing.delta import Update, weight_of
from fasttrace.editing.harness import Harness, prepare_harness
from fasttrace.facts import EncodedFact, Fact, encode_prompt
from fasttrace.models.adapter import Decoder
from fasttrace.models.generate import continue_tokens
from fasttrace.models.packed import sequence_logprob
from fasttrace.ops.noised_embed import fact_key
from fasttrace.settings.base import refusal
from fasttrace.settings.mass import SAMPLED, MassSettings

HELD_OUT_LENGTH = 128  # tokens of a sequence of the held-out text, or as many as the model has positions
HELD_OUT_SEED = 2**63  # added to the run's seed, so that no corpus of second moments has the same sampled text

TOKENS, TOP_K = 100, 5  # of a generated text, its prompt included (kmeng01/memit, eval_utils_counterfact.py)
BATCH = 32  # texts generated together; a fixed number, so that a text does not depend on the memory
WEIGHTS = {2: 2 / 3, 3: 4 / 3}  # n → weight of the entropy of the n-grams
# A word, also one with a hyphen, an apostrophe, a point or a comma inside, with its combining marks; or one other sign.
WORD = re.compile(r"[\w\u0300-\u036f]+(?:[-'’.,][\w\u0300-\u036f]+)*|[^\w\s]")

_NAME = [("model_index", pa.int32()), ("n_edits", pa.int32())]
MEASURES = pa.schema(
    [
        *_NAME,
        ("edit_seconds", pa.float64()),
        ("perplexity", pa.float64()),
        ("perplexity_unedited", pa.float64()),
        ("held_out_tokens", pa.int64()),
        ("entropy", pa.float64()),
        ("entropy_unedited", pa.float64()),
        ("texts", pa.int32()),
    ]
)
NORMS = pa.schema(
    [
        *_NAME,
        ("layer", pa.int32()),
        *((name, pa.float64()) for name in ("weight_norm", "weight_norm_unedited", "change_norm")),
    ]
)
TASKS = pa.schema(
    [
        *_NAME,
        *((name, pa.string()) for name in ("task", "metric")),
        *((name, pa.float64()) for name in ("value", "value_sem", "value_unedited")),
        ("samples", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Measured:
    """What is measured of one model: a row of MEASURES without edit_seconds, and rows of NORMS and TASKS."""

    measures: dict[str, Any]
    norms: list[dict[str, Any]]
    tasks: list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Watch:
    """What is measured at each scoring of a mass edit.

    model: without any edit. held_out: the text of the perplexity, None for none. fluency: number of texts to generate.
    harness: the tasks of lm-evaluation-harness, None for none. identity: its entries in the run's settings.
    """

    model: Decoder
    held_out: Corpus | None
    fluency: int
    seed: int
    harness: Harness | None
    identity: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def sequences(self) -> list[list[int]]:
        """The token ids of every sequence of the held-out text that has a token to predict."""
        if self.held_out is None:
            return []
        found = self.held_out.sequences(Alone(self.model), cache_root(None))
        return [sequence for sequence in found if len(sequence) > 1]

    @cached_property
    def unedited_perplexity(self) -> float | None:
        """The perplexity of the held-out text in the unedited model."""
        return perplexity(self.model, self.sequences)

    @cached_property
    def unedited_tasks(self) -> dict[tuple[str, str], float]:
        """(task, metric) → its value in the unedited model."""
        if self.harness is None:
            return {}
        return {(row["task"], row["metric"]): row["value"] for row in self.harness.run(self.model)}

    def of(self, facts: Sequence[EncodedFact]) -> "WatchedModel":
        """The measures of the model that these facts are edited into. Measures the unedited model."""
        prompts = generation_prompts(self.model, [one.fact for one in facts], self.fluency)
        before = entropy(generated(self.model, prompts, self.seed))
        _ = self.unedited_perplexity, self.unedited_tasks  # now, so that what cannot be measured fails before an edit
        return WatchedModel(self, prompts, before)


@dataclass(frozen=True, eq=False)
class WatchedModel:
    """The measures of one edited model. prompts: of the texts to generate. unedited_entropy: of the unedited model's
    texts."""

    watch: Watch
    prompts: list[list[int]]
    unedited_entropy: float | None

    def measure(self, view: Decoder, updates: Mapping[int, Update], **name: int) -> Measured:
        """Measure the model with edits. view: the model with `updates`. name: model_index and n_edits of the rows."""
        watch = self.watch
        measures = {
            **name,
            "perplexity": perplexity(view, watch.sequences),
            "perplexity_unedited": watch.unedited_perplexity,
            "held_out_tokens": sum(len(one) - 1 for one in watch.sequences) or None,
            "entropy": entropy(generated(view, self.prompts, watch.seed)),
            "entropy_unedited": self.unedited_entropy,
            "texts": len(self.prompts) or None,
        }
        tasks: list[dict[str, Any]] = []
        if watch.harness is not None:
            before = watch.unedited_tasks
            with apply_delta(watch.model, dict(updates)):
                found = watch.harness.run(watch.model)
            tasks = [{**name, **row, "value_unedited": before.get((row["task"], row["metric"]))} for row in found]
        return Measured(measures, [{**name, **row} for row in norms(watch.model, view, updates)], tasks)


def prepare_watch(model: Decoder, asked: MassSettings) -> Watch:
    """Read the held-out text, and find the tasks.

    Raises UserError where the text cannot be read or has no token to predict, and as `prepare_harness`.
    """
    held_out: Corpus | None = None
    identity: dict[str, str] = {}
    if asked.held_out is not None:
        length = model.room(1, HELD_OUT_LENGTH)
        if asked.held_out == SAMPLED:
            seed = HELD_OUT_SEED + asked.seed
            held_out = sampled_corpus(model, asked.held_out_tokens, length, seed)
        else:
            path = Path(asked.held_out).expanduser()
            held_out = text_corpus(model, path, asked.held_out_tokens, length, what="held-out text")
            if all(len(one) < 2 for one in held_out.ids):
                raise refusal(asked, "held_out", "a text of at least two tokens", f"'{path}'")
            identity["held_out"] = held_out.corpus_hash  # whatever the path that leads to it
    harness = prepare_harness(model, asked)
    if harness is not None:
        identity |= harness.identity
    return Watch(model, held_out, asked.fluency, asked.seed, harness, identity)


def norms(model: Decoder, view: Decoder, updates: Mapping[int, Update]) -> list[dict[str, Any]]:
    """Frobenius norms of the edited down-projections: those of `view`, those of the unedited `model`, and the change's.

    Both are the weights in the model's dtype, as they are written. Returns rows of NORMS without its first columns.
    """
    rows = []
    for layer, block in model.layers(sorted(updates)):
        before, after = (weight_of(one, updates[layer]) for one in (block, view.blocks[layer]))
        wide = torch.promote_types(before.dtype, torch.float32)
        row = {"weight_norm": _norm(after), "weight_norm_unedited": _norm(before)}
        rows.append({"layer": layer, **row, "change_norm": _norm(after.to(wide) - before.to(wide))})
    return rows


def _norm(weight: Tensor) -> float:
    return float(torch.linalg.vector_norm(weight, dtype=torch.float64))


def perplexity(model: Decoder, sequences: Sequence[Sequence[int]]) -> float | None:
    """exp(mean of −log p per predicted token), where the first token of a sequence is only read. None without any.

    sequences: token ids, at least two each.
    """
    if not sequences:
        return None
    logp = sequence_logprob(model, [one[:1] for one in sequences], [one[1:] for one in sequences])
    return float((-logp.sum() / sum(len(one) - 1 for one in sequences)).exp())


def generation_prompts(model: Decoder, facts: Sequence[Fact], count: int) -> list[list[int]]:
    """Token ids of up to `count` different prompts to generate from: one of each fact, then a second of each.

    A fact's prompts are `generation_prompts` of its meta (CounterFact), or else its own prompt. A prompt that leaves no
    token to generate is left out.
    """
    if not count:
        return []
    rounds = chain.from_iterable(zip_longest(*map(_prompts_of, facts)))
    prompts: list[list[int]] = []
    for text in dict.fromkeys(one for one in rounds if one is not None):
        ids = encode_prompt(model.tokenizer, text)
        if len(ids) < model.room(1, TOKENS):
            prompts.append(ids)
            if len(prompts) == count:
                break
    return prompts


def _prompts_of(fact: Fact) -> list[str]:
    found = fact.meta.get("generation_prompts")
    texts = [one for one in found if isinstance(one, str) and one] if isinstance(found, list | tuple) else []
    return texts or [fact.text]


def generated(model: Decoder, prompts: Sequence[Sequence[int]], seed: int) -> list[str]:
    """A text after each prompt, with the prompt: 100 tokens in all, drawn among the 5 likeliest.

    Special tokens are not part of it. A drawn end-of-text token does not end a text. The draws of a text depend on the
    seed and its prompt alone. As in kmeng01/memit (util/generate.py), texts are normalised by NFKD, and an empty line
    is a space.
    """
    total = model.room(1, TOKENS)
    texts = []
    for at in range(0, len(prompts), BATCH):
        part = prompts[at : at + BATCH]
        seeds = [(seed, fact_key(repr(list(prompt)))) for prompt in part]
        length = total - min(map(len, part))
        drawn = continue_tokens(model, part, length, seeds=seeds, per_seed=1, top_k=TOP_K, total=total)
        for prompt, ids in zip(part, drawn, strict=True):
            text = model.tokenizer.decode([*prompt, *ids], skip_special_tokens=True)
            texts.append(unicodedata.normalize("NFKD", text).replace("\n\n", " "))
    return texts


def entropy(texts: Sequence[str]) -> float | None:
    """The mean of the texts' n-gram entropies, in bits. None without a text."""
    return sum(map(ngram_entropy, texts)) / len(texts) if texts else None


def ngram_entropy(text: str) -> float:
    """The mean of ⅔ H₂ and ⁴⁄₃ H₃, in bits, where Hₙ = −Σ f log₂ f over the frequencies f of the text's n-grams.

    Meng et al. 2022 (arXiv 2202.05262) call it fluency; their tables have it times 100. The n-grams are of words and
    signs (WORD), where the released code has those of nltk.word_tokenize. A text of fewer than n words has Hₙ = 0.
    """
    words = WORD.findall(text)
    parts = []
    for n, weight in WEIGHTS.items():
        counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
        total = counts.total()
        parts.append(weight * -sum(count / total * log2(count / total) for count in counts.values()))
    return sum(parts) / len(parts)


def by_number(measures: pa.Table, norms: pa.Table) -> pa.Table:
    """What is measured of a run's models, by number of edits: n_edits, the mean perplexity and entropy, and
    relative_change, the largest ‖ΔW‖/‖W‖ of a layer, W without any edit. Without the columns that are NULL throughout.

    measures, norms: rows of MEASURES and NORMS.
    """
    means = measures.group_by("n_edits").aggregate([("perplexity", "mean"), ("entropy", "mean")])
    share = pc.divide(norms["change_norm"], norms["weight_norm_unedited"])
    most = norms.select(["n_edits"]).append_column("relative_change", share).group_by("n_edits")
    table = means.join(most.aggregate([("relative_change", "max")]), "n_edits")
    table = table.rename_columns([name.removesuffix("_mean").removesuffix("_max") for name in table.column_names])
    return table.select([name for name in table.column_names if table[name].null_count < len(table)] or ["n_edits"])
