"""Weights packed one number at a time, as GPTQ, AWQ, compressed-tensors, FP8 and MXFP4 publish their layouts.

Each function returns the tensors of one linear layer by name, and the weight that they stand for, (out, in) float64.
"""

import numpy as np
import torch

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column that AWQ puts into the first, second, … four bits of a word
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)  # E2M1 by its four bits


def words(numbers, bits):
    """Integers → (n,) int32: their bits in one long row, cut into words of 32."""
    row = sum(int(number) << (bits * place) for place, number in enumerate(numbers))
    count = -(-len(numbers) * bits // 32)
    return np.array([(row >> (32 * i)) & 0xFFFFFFFF for i in range(count)], dtype=np.uint32).view(np.int32)


def rows_of_words(numbers, bits):
    """(rows, n) integers → (rows, words) int32."""
    return torch.from_numpy(np.stack([words(row, bits) for row in numbers.tolist()]))


def grid(weight, bits, group, symmetric=False):
    """Numbers (out, in), zeros and float16 scales (out, groups) of a uniform grid for each group of a row."""
    out, width = weight.shape
    parts, most = weight.view(out, width // group, group), 2**bits - 1
    if symmetric:
        half = 2 ** (bits - 1)
        scale = (parts.abs().amax(2) / (half - 1)).half()
        zero = torch.full_like(scale, half, dtype=torch.int64)
    else:
        low, high = parts.amin(2).clamp(max=0), parts.amax(2).clamp(min=0)
        scale = ((high - low) / most).half()
        zero = (-low / scale.double()).round().clamp(0, most).long()
    number = (parts / scale.double()[..., None]).round().long() + zero[..., None]
    return number.clamp(0, most).view(out, width), zero, scale


def _exact(number, zero, scale, group_of):
    return scale.double()[:, group_of] * (number - zero[:, group_of]).double()


def gptq(weight, bits, group, version=1, shuffled=False):
    """shuffled: whether columns are put into groups in another order than they have (act-order, desc_act)."""
    width = weight.shape[1]
    order = torch.randperm(width) if shuffled else torch.arange(width)
    number, zero, scale = grid(weight[:, order], bits, group)
    group_of = torch.empty(width, dtype=torch.int64)
    group_of[order] = torch.arange(width) // group
    number = number[:, order.argsort()]
    stored = zero if version == 2 else (zero - 1) % 2**bits
    tensors = {
        "qweight": rows_of_words(number, bits).T,
        "qzeros": rows_of_words(stored.T, bits),
        "scales": scale.T,
        "g_idx": group_of.int(),
    }
    return tensors, _exact(number, zero, scale, group_of)


def awq(weight, group):
    number, zero, scale = grid(weight, 4, group)
    group_of = torch.arange(weight.shape[1]) // group

    def by_column(table):  # (out, n) → (n, out / 8) int32
        eights = table.T.reshape(table.shape[1], -1, 8)[:, :, AWQ_ORDER]
        return rows_of_words(eights.reshape(table.shape[1], -1), 4)

    tensors = {"qweight": by_column(number), "qzeros": by_column(zero), "scales": scale.T}
    return tensors, _exact(number, zero, scale, group_of)


def compressed(weight, bits, group, symmetric=True):
    """The format pack-quantized. Integers are stored without their sign, as is the zero, if there is one."""
    number, zero, scale = grid(weight, bits, group, symmetric)
    tensors = {
        "weight_packed": rows_of_words(number, bits),
        "weight_scale": scale,
        "weight_shape": torch.tensor(weight.shape),
    }
    if not symmetric:
        tensors["weight_zero_point"] = rows_of_words(zero.T, bits).T
    return tensors, _exact(number, zero, scale, torch.arange(weight.shape[1]) // group)


def naive(weight):
    """The format int-quantized: int8 with one scale a row."""
    scale = (weight.abs().amax(1, keepdim=True) / 127).bfloat16()
    number = (weight / scale.double()).round().clamp(-127, 127).to(torch.int8)
    return {"weight": number, "weight_scale": scale}, number.double() * scale.double()


def fp8(weight, block, scale_name="weight_scale_inv"):
    """Floats of 8 bits (E4M3) with one float32 scale for each block of rows and columns."""
    out, width = weight.shape
    scale = torch.empty(-(-out // block[0]), -(-width // block[1]))
    number, exact = torch.empty(out, width, dtype=torch.float8_e4m3fn), torch.empty(out, width, dtype=torch.float64)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            place = slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1])
            scale[i, j] = weight[place].abs().max() / 448
            number[place] = (weight[place] / scale[i, j].double()).float().to(torch.float8_e4m3fn)
            exact[place] = number[place].double() * scale[i, j].double()
    return {"weight": number, scale_name: scale}, exact


def mxfp4(weight):
    """Blocks (…, n / 32, 16) and scales (…, n / 32) of MXFP4: 32 numbers of 4 bits share a power of two (bias 127)."""
    parts = weight.unflatten(-1, (-1, 32))
    power = torch.floor(torch.log2(parts.abs().amax(-1))) - 2  # the largest E2M1 number is 6 = 1.5 · 2²
    table = torch.tensor(FP4, dtype=torch.float64)
    number = (parts / 2 ** power[..., None] - table[:, None, None, None, None]).abs().argmin(0)
    blocks = (number[..., 0::2] | number[..., 1::2] << 4).to(torch.uint8)
    return blocks, (power + 127).to(torch.uint8), (table[number] * 2 ** power[..., None]).flatten(-2)
