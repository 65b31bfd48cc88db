"""The task of every peer: the model's folder, what to trace in it, and how logits are scored."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """expected: fasttrace's grid in float32."""

    folder: Path
    dtype: torch.dtype
    expected: np.ndarray

    def load(self):
        """The transformers model as it loads by default, with its default attention, and its tokenizer."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        hf = AutoModelForCausalLM.from_pretrained(self.folder, dtype=self.dtype)
        return hf.eval().requires_grad_(False), AutoTokenizer.from_pretrained(self.folder)


@dataclass(frozen=True)
class Noised(Task):
    """One fact to trace with noise on its subject.

    ids: (1, T) the prompt. target: the one token scored after it. [begin, end): the subject's tokens.
    noise: (n, end - begin, d) float64, σ included, to be added to the embeddings of n corrupted rows.
    expected: (tokens, L).
    """

    ids: Tensor
    target: int
    begin: int
    end: int
    window: int
    noise: Tensor

    @classmethod
    def of(cls, given: dict, **task) -> "Noised":
        [target] = given["target_ids"]
        begin, end = given["subject"]
        # The released code draws noise anew for every fact, always from seed 1.
        drawn = np.random.RandomState(1).randn(given["samples"], end - begin, given["width"])
        noise = torch.from_numpy(given["sigma"] * drawn)
        return cls(
            **task,
            ids=torch.tensor([given["ids"]]),
            target=target,
            begin=begin,
            end=end,
            noise=noise,
            window=given["window"],
        )

    @property
    def samples(self) -> int:
        """Noise samples n."""
        return len(self.noise)

    @property
    def tokens(self) -> range:
        """The restored tokens, which are the subject's."""
        return range(self.begin, self.end)

    def intervals(self, n_layers: int) -> list[range]:
        """The layers that the cell at each layer restores: the released rule, clipped at both ends."""
        w = self.window
        return [range(max(0, at - w // 2), min(n_layers, at - (-w // 2))) for at in range(n_layers)]

    def cells_of(self, layer: int, n_layers: int) -> slice:
        """The cells, by their layer, whose window contains `layer`. They are always consecutive."""
        held = [at for at, interval in enumerate(self.intervals(n_layers)) if layer in interval]
        return slice(held[0], held[-1] + 1)

    def corrupt(self, embeddings: Tensor) -> Tensor:
        """Add the noise in place to the embeddings (k·n, T, d) of k cells' rows, and return them."""
        noised = embeddings.unflatten(0, (-1, self.samples))
        noised[:, :, self.begin : self.end] += self.noise
        return embeddings

    def score(self, logits: Tensor) -> np.ndarray:
        """(k·n, T, V) logits → (k,) probability of the target after the prompt, mean over samples."""
        logp = logits[:, -1].double().log_softmax(-1)[:, self.target]
        return logp.exp().view(-1, self.samples).mean(1).numpy()


@dataclass(frozen=True)
class Paired(Task):
    """n prompts and their counterfactuals, all of T tokens. A cell puts the clean output of a block, or of one of its
    attention heads, into the corrupted pass at one token.

    clean, corrupted: (n, T) ids. answers: (n, 2), the tokens whose logits are subtracted.
    by_head: whether the output is z, a head's mixed values before the output projection, and not a block's.
    expected: (n, T, L, H) logit differences, with H = 1 for blocks.
    """

    clean: Tensor
    corrupted: Tensor
    answers: Tensor
    by_head: bool

    @classmethod
    def of(cls, given: dict, **task) -> "Paired":
        ids = {name: torch.tensor(given[name]) for name in ("clean", "corrupted", "answers")}
        return cls(**task, **ids, by_head=given["by_head"])

    @property
    def begin(self) -> int:
        """The first token at which a counterfactual differs. Before it, a cell changes nothing."""
        return int((self.clean != self.corrupted).any(0).nonzero()[0])

    def score(self, logits: Tensor) -> Tensor:
        """(k·n, T, V) logits → (k·n,) differences at the last token."""
        true, false = (
            logits[:, -1].gather(1, self.answers.repeat(len(logits) // len(self.answers), 1)).double().unbind(1)
        )
        return true - false

    def restore(self, out: Tensor, clean: Tensor, layer: int, token: int) -> Tensor:
        """Put a layer's clean outputs (n, T, …) over the token, in place, in the rows of that layer's cells.

        out: (L·H·n, T, …) outputs of a batch that has the cells (layer, head) of all layers, each with n prompts.
        """
        n, length, layers, heads = self.expected.shape
        rows = out.view(layers, heads, n, length, heads, -1)[layer, :, :, token]
        every = torch.arange(heads)
        rows[every, :, every] = clean.reshape(n, length, heads, -1)[:, token].transpose(0, 1)
        return out

    def grid(self, unchanged: Tensor, found: list[Tensor]) -> np.ndarray:
        """The grid from the corrupted pass's scores (n,), which are those before `begin`, and for each token from there
        on the scores (L·H·n,) of a batch as in `restore`."""
        n, length, layers, heads = self.expected.shape
        before = unchanged.expand(self.begin, layers, heads, n)
        after = torch.stack(found).view(length - self.begin, layers, heads, n)
        return torch.cat([before, after]).permute(3, 0, 1, 2).numpy()


KINDS = {"noise": Noised, "counterfactual": Paired}


def read(folder: Path, dtype: str) -> Task:
    """The task that bench_peers.py wrote into the folder beside the weights."""
    given = json.loads((folder / "task.json").read_text())
    expected = np.load(folder / "expected.npy")
    return KINDS[given["kind"]].of(given, folder=folder, dtype=getattr(torch, dtype), expected=expected)


class Paths(NamedTuple):
    """Names of a transformers model's modules, with {} for the layer. projection: attention's output projection."""

    embedding: str
    block: str
    mlp: str
    projection: str


def paths(hf) -> Paths:
    """Where a transformers model keeps its modules."""
    if hasattr(hf, "transformer"):
        block = "transformer.h.{}"
        return Paths("transformer.wte", block, f"{block}.mlp", f"{block}.attn.c_proj")
    block = "model.layers.{}"
    return Paths("model.embed_tokens", block, f"{block}.mlp", f"{block}.self_attn.o_proj")
