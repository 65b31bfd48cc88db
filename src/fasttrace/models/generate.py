"""Greedy or sampled text from a model: many texts at once, with one pass over the blocks per new token.

transformers' `generate` gives the same greedy tokens. Driving the blocks here uses fasttrace's faster matrix products,
extends keys and values in place instead of copying them at every step, and needs no padding.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Block, Rotary
from fasttrace.models.hooked import HookedDecoder, Rereading
from fasttrace.models.keys import Keys
from fasttrace.models.packed import Batch, bring, embed, mix, mlp, pack, row_logits
from fasttrace.ops.prefix_attention import Sequences, sequence_table

# change(layer, keys of N rows, value (N, d), begin (texts + 1,)) → (N, d), the MLP's output as edits change it. Text t
# has rows begin[t] … begin[t + 1] − 1. The layer is brought.
RowChange = Callable[[int, Keys, Tensor, np.ndarray], Tensor]
BLOCK = 256  # tokens whose probabilities are summed as one block in a draw


def prefix_ids(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer puts before every text: [BOS] or nothing."""
    plain = tokenizer("a", add_special_tokens=False).input_ids
    full = tokenizer("a").input_ids
    at = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)
    return list(full[:at])


def start_ids(model: Decoder) -> list[int]:
    """The tokens before a sampled text, chosen to resemble the start of a document in training.

    This is BOS if the tokenizer adds it, if one token is both BOS and EOS (GPT-2, GPT-J), or if there is no EOS.
    Otherwise it is EOS and a line break. It is token 0 if the tokenizer has neither BOS nor EOS.

    A single special token is not enough for every model. The first position of SmolLM2 predicts the same few symbols
    ("-" with p = 0.4), whatever its token.
    """
    tokenizer = model.tokenizer
    if added := prefix_ids(tokenizer):
        return added
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if eos is None or bos == eos:
        return [0 if bos is None else int(bos)]
    return [int(eos), *tokenizer("\n", add_special_tokens=False).input_ids]


@torch.no_grad()
def sample_tokens(
    model: Decoder,
    rows: int,
    length: int,
    *,
    seed: int | Sequence[int],
    top_k: int | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """Draw `rows` texts of `length` tokens: (rows, length) int64 on the CPU, `start_ids` not included.

    The temperature is 1. A drawn end-of-text token does not end a text.

    seed: seed of the draws, which are made on the CPU. Several numbers, each at least 0, form one seed.
    top_k: draw among the k likeliest tokens, or among all for None.
    allowed: (V,) bool, tokens that may be drawn, or None for all.

    Raises ModelError where the model has too few positions.
    """
    prompts = [start_ids(model)] * rows
    return torch.tensor(
        continue_tokens(model, prompts, length, seeds=[seed], per_seed=rows, top_k=top_k, allowed=allowed)
    ).view(rows, length)


@torch.no_grad()
def continue_tokens(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    length: int,
    *,
    seeds: Sequence[int | Sequence[int]],
    per_seed: int,
    top_k: int | None = None,
    allowed: Tensor | None = None,
    total: int | None = None,
) -> list[list[int]]:
    """Draw `length` tokens after each prompt (token ids). Prompts may have different lengths.

    seeds: one seed of the draws for every per_seed consecutive prompts. top_k, allowed: as in `sample_tokens`. total:
    the most tokens of a prompt and its text, which is cut there; None for no bound.

    Raises ModelError where the model has too few positions for a prompt and its text.
    """
    # NumPy's generator uses every bit of every number. torch's CPU generator uses only 32 bits of its seed.
    generators = [np.random.default_rng(seed) for seed in seeds]
    lengths = [length if total is None else max(0, min(length, total - len(prompt))) for prompt in prompts]
    for prompt, mine in zip(prompts, lengths, strict=True):
        model.check_length(len(prompt) + mine - 1, f"a text of {mine} tokens that is sampled")
    texts = _Texts(model, prompts, length)
    scores = texts.read()
    ids = torch.empty((len(prompts), length), dtype=torch.int64)
    for step in range(length):
        if allowed is not None:
            scores.masked_fill_(~allowed.to(scores.device), float("-inf"))
        points = np.concatenate([generator.random((per_seed, 1)) for generator in generators])
        last = _draw(scores, top_k, points)
        ids[:, step] = last
        if step + 1 < length:
            scores = texts.step(last.to(model.device))
    return [row[:mine] for row, mine in zip(ids.tolist(), lengths, strict=True)]


@torch.no_grad()
def greedy_tokens(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    length: int,
    *,
    keep_end: bool = False,
    done: Callable[[int, Sequence[int]], bool] | None = None,
    change: RowChange | None = None,
    embedded: Callable[[Batch], Tensor] | None = None,
) -> list[list[int]]:
    """Greedy continuation of each prompt (token ids), at most `length` tokens. Prompts may have different lengths.

    A text is cut before its first end-of-text token, or after it with keep_end, and where the model's positions end
    (`Decoder.room`).

    done: whether a text is complete, given its number and all its new tokens so far. No token is drawn once all texts
    are complete. Until then a complete text goes on with the others, so the caller cuts it.
    change: what edits make of the MLP's output. embedded: the input of block 0 at the prompts' tokens, by default that
    of their embeddings.

    Raises ModelError where a prompt alone has more tokens than the model has positions.
    """
    ends = end_ids(model)
    for prompt in prompts:
        model.check_length(len(prompt), "a prompt to continue")
    room = torch.tensor([model.room(len(prompt), length) for prompt in prompts])
    steps = int(room.max())
    begun = _Texts(model, prompts, steps, change)
    scores = begun.read(embedded)
    ids = torch.empty((len(prompts), steps), dtype=torch.int64)
    ended = torch.zeros(len(prompts), dtype=torch.bool)
    for step in range(steps):
        last = scores.argmax(1)
        ids[:, step] = last.cpu()
        ended |= torch.isin(ids[:, step], ends) | (room <= step + 1)
        if done is not None:
            so_far = enumerate(zip(ended.tolist(), ids[:, : step + 1].tolist(), strict=True))
            complete = [was or done(number, row) for number, (was, row) in so_far]
            ended = torch.tensor(complete)
        if bool(ended.all()):
            break
        scores = begun.step(last.to(model.device))
    texts = []
    for row, most in zip(ids[:, : step + 1].tolist(), room.tolist(), strict=True):
        stop = next((i for i, token in enumerate(row[:most]) if token in ends), most)
        texts.append(row[: min(stop + keep_end, most)])
    return texts


def end_ids(model: Decoder) -> Tensor:
    """The tokens that end a text according to the model's generation config: (n,) int64."""
    ends = model.hf.generation_config.eos_token_id
    return torch.tensor([ends] if isinstance(ends, int) else list(ends or ()), dtype=torch.int64)


class _Texts:
    """Texts in progress, over the model's blocks, or by whole forwards where it has none.

    new_tokens: the most that a text gets. change, embedded: as for `greedy_tokens`.
    """

    def __init__(
        self, model: Decoder, prompts: Sequence[Sequence[int]], new_tokens: int, change: RowChange | None = None
    ) -> None:
        self.model, self.prompts = model, prompts
        if isinstance(model, HookedDecoder) and change is None:
            self.whole: Rereading | None = Rereading(model)
        else:
            self.whole, self.cache = None, _KeyValueCache(model, [len(p) for p in prompts], new_tokens, change)

    def read(self, embedded: Callable[[Batch], Tensor] | None = None) -> Tensor:
        """Run whole prompts. Return the (rows, V) float32 logits at the last token of each."""
        if self.whole is not None:
            return self.whole.read(self.prompts)
        return row_logits(self.model, self.cache.read(pack(self.model, self.prompts), embedded)).float()

    def step(self, ids: Tensor) -> Tensor:
        """ids: (rows,) int64, the next token of every text → (rows, V) float32 logits at these tokens."""
        if self.whole is not None:
            return self.whole.step(ids)
        return row_logits(self.model, self.cache.step(ids)).float()


class _KeyValueCache:
    """Keys and values of texts in progress: `room` rows per text and layer, extended in place."""

    def __init__(
        self, model: Decoder, lengths: Sequence[int], new_tokens: int, change: RowChange | None = None
    ) -> None:
        self.model, self.change = model, change
        self.length = np.asarray(lengths, dtype=np.int64)
        self.room = int(self.length.max()) + new_tokens
        rows = len(lengths) * self.room
        self.layers = [
            torch.empty((2, rows, block.n_kv_heads, block.head_dim), dtype=model.dtype, device=block.device)
            for block in model.blocks
        ]

    def read(self, batch: Batch, embedded: Callable[[Batch], Tensor] | None = None) -> Tensor:
        """Run whole prompts. Return the (rows, d) residual at the last token of each."""
        begin = np.arange(len(batch.lengths)) * self.room
        place = torch.from_numpy(np.repeat(begin, batch.lengths)).to(batch.ids.device) + batch.positions
        h = embed(self.model, batch.ids, batch.positions) if embedded is None else embedded(batch)
        self.rows = np.append(0, np.cumsum(batch.lengths))
        h = self._blocks(h, batch.positions, place, batch.sequences)
        return h[batch.last_rows.to(h.device)]

    def step(self, ids: Tensor) -> Tensor:
        """ids: (rows,) int64, the next token of every text → (rows, d), the residual at these tokens."""
        begin = np.arange(len(ids)) * self.room
        # A text that has no position left goes on at its last one, and what follows there is not used.
        most = self.model.positions
        positions = torch.from_numpy(self.length if most is None else self.length.clip(max=most - 1)).to(ids.device)
        place = torch.from_numpy(begin + self.length).to(ids.device)
        self.length = self.length + 1
        self.rows = np.arange(len(ids) + 1)
        table = sequence_table(q_begin=np.arange(len(ids)), q_len=1, k_begin=begin, k_len=self.length)
        return self._blocks(embed(self.model, ids, positions), positions, place, Sequences(table), whole=True)

    def _blocks(
        self, h: Tensor, positions: Tensor, place: Tensor, sequences: Sequences, *, whole: bool = False
    ) -> Tensor:
        """h: (N, d), positions, place: (N,) int64 → (N, d) after every block.

        Keys and values are stored at rows `place`. whole: queries attend to all stored keys, not only to those of h.
        """
        rotary = self.model.rotary(positions)
        for layer, block in self.model.layers():
            h, rotary, place = h.to(block.device), bring(rotary, block.device), place.to(block.device)
            h = self._block(layer, block, h, rotary, place, sequences, whole)
        return h

    def _block(
        self,
        layer: int,
        block: Block,
        h: Tensor,
        rotary: Rotary,
        place: Tensor,
        sequences: Sequences,
        whole: bool,
    ) -> Tensor:
        cached = self.layers[layer]
        x = block.attn_norm(h)
        k, v = block.key_value(x, rotary)
        cached[0, place], cached[1, place] = k, v
        if whole:
            k, v = cached
        q = block.query(x, rotary)
        resid_mid = h + block.attn_out(mix(block, q, k, v, sequences))
        entering = h if block.parallel else resid_mid
        if self.change is None:
            return resid_mid + mlp(block, entering)
        keys, value = block.keys_and_value(block.mlp_norm(entering))
        return resid_mid + block.mlp_add(self.change(layer, keys, value, self.rows))


def _draw(scores: Tensor, top_k: int | None, points: np.ndarray) -> Tensor:
    """Draw one token per row by inverting the cumulative distribution.

    scores: (rows, V) float32, points: (rows, 1) in [0, 1) → (rows,) int64 on the CPU. The draw finds the block of
    tokens first and then the token in it, because a running sum over V numbers per row took 20 % of a step.
    """
    names = None
    if top_k is not None:
        scores, names = scores.topk(min(top_k, scores.shape[1]), dim=1)
    weights = (scores - scores.amax(1, keepdim=True)).exp_()
    weights = functional.pad(weights, (0, -weights.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    sums = weights.sum(2, dtype=torch.float64)
    point = torch.from_numpy(points).to(scores.device)
    block, point = _invert(sums, point)
    inside = weights.gather(1, block[:, :, None].expand(-1, -1, BLOCK)).squeeze(1).double()
    chosen = block * BLOCK + _invert(inside, point)[0]
    return (chosen if names is None else names.gather(1, chosen)).squeeze(1).cpu()


def _invert(weights: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """weights: (rows, n) float64, point: (rows, 1) in [0, 1) → index and fraction, both (rows, 1).

    The point falls into the interval of `index` in the cumulative weights. `fraction`, in [0, 1), is its position in
    that interval. An index of weight 0 is never chosen.
    """
    upto = weights.cumsum(1)
    at = torch.minimum(point * upto[:, -1:], upto[:, -1:] * (1 - 1e-15))
    index = torch.searchsorted(upto, at, right=True)
    weight = weights.gather(1, index)
    return index, ((at - upto.gather(1, index) + weight) / weight).clamp(0.0, 1 - 1e-15)
