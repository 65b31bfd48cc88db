"""The task of every peer: the model's folder, one fact to trace, its noise, and how logits are scored."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """ids: (1, T) the prompt. target: the one token scored after it. [begin, end): the subject's tokens.

    noise: (n, end - begin, d) float64, σ included, to be added to the embeddings of n corrupted rows.
    expected: fasttrace's grid (tokens, L) in float32.
    """

    folder: Path
    dtype: torch.dtype
    ids: Tensor
    target: int
    begin: int
    end: int
    window: int
    noise: Tensor
    expected: np.ndarray

    @classmethod
    def read(cls, folder: Path, dtype: str) -> "Task":
        """The task that bench_peers.py wrote into the folder beside the weights."""
        given = json.loads((folder / "task.json").read_text())
        [target] = given["target_ids"]
        begin, end = given["subject"]
        # The released code draws noise anew for every fact, always from seed 1.
        drawn = np.random.RandomState(1).randn(given["samples"], end - begin, given["width"])
        noise = torch.from_numpy(given["sigma"] * drawn)
        ids, expected = torch.tensor([given["ids"]]), np.load(folder / "expected.npy")
        return cls(folder, getattr(torch, dtype), ids, target, begin, end, given["window"], noise, expected)

    def load(self):
        """The transformers model as it loads by default, with its default attention, and its tokenizer."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        hf = AutoModelForCausalLM.from_pretrained(self.folder, dtype=self.dtype)
        return hf.eval().requires_grad_(False), AutoTokenizer.from_pretrained(self.folder)

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


def paths(hf) -> tuple[str, str]:
    """Where a transformers model keeps its token embeddings and, with {} for the layer, its MLPs."""
    if hasattr(hf, "transformer"):
        return "transformer.wte", "transformer.h.{}.mlp"
    return "model.embed_tokens", "model.layers.{}.mlp"
