"""Plain causal tracing, the reference for sweeps: one whole transformers forward per cell, with hooks.

It uses no code of fasttrace. The caller gives token ids, and noise as numbers. Hooks replace module outputs: an MLP's
(that of its down-projection), what attention adds to the residual stream, the residual stream after a block, or some
attention heads' (that is a slice of the output projection's input). Everything is measured from whole logits.
Source: paper, section 3.2; docs/algorithms.md, sections 3 to 9.
"""

from typing import NamedTuple

import numpy as np
import torch

# Families that norm attention's output before it is added.
POST_NORMS = ("exaone4", "gemma2", "gemma3_text", "olmo2", "olmo3")


def block_modules(hf):
    """Every block. Its output, or the first of several, is the residual stream after it."""
    multimodal = hf.config.get_text_config() is not hf.config
    base = hf.get_decoder() if multimodal else hf.base_model
    base = getattr(base, "decoder", base)
    if kind_of(hf) == "llama4_text":
        base = base.model  # its class names another part as its base
    return list(next(getattr(base, name) for name in ("h", "blocks", "layers") if hasattr(base, name)))


def kind_of(hf):
    """transformers' name of the model's family, or of the text decoder's in a multimodal model."""
    return hf.config.get_text_config().model_type


def mlp_modules(hf):
    """For every block, the module whose output is the MLP's. It is the down-projection where the MLP has no module
    of its own (OPT), or one that adds the residual (BLOOM)."""
    inside = {
        **dict.fromkeys(("opt", "xglm", "biogpt"), lambda b: b.fc2),
        "bloom": lambda b: b.mlp.dense_4h_to_h,
        "mpt": lambda b: b.ffn.down_proj,
        "ctrl": lambda b: b.ffn[2],
        "granitemoehybrid": lambda b: b.shared_mlp,
        "recurrent_gemma": lambda b: b.mlp_block,
        "granitemoe": lambda b: b.block_sparse_moe,
        **dict.fromkeys(("bamba", "jamba", "lfm2", "llama4_text", "rwkv"), lambda b: b.feed_forward),
    }
    return [inside.get(kind_of(hf), lambda b: b.mlp)(block) for block in block_modules(hf)]


def attn_modules(hf):
    """For every block, the module whose (first) output is what attention adds to the residual stream."""
    places = {
        "bloom": lambda b: b.self_attention.dense,
        "falcon": lambda b: b.self_attention,
        **dict.fromkeys(("gpt_neox", "gpt_neox_japanese"), lambda b: b.attention),
        **dict.fromkeys(
            ("gpt2", "gptj", "gpt_neo", "gpt_bigcode", "codegen", "mpt", "modernbert-decoder"), lambda b: b.attn
        ),
        "ctrl": lambda b: b.multi_head_attention,
        "glm4": lambda b: b.post_self_attn_layernorm,
        "hyperclovax": lambda b: b.post_norm1,
        **dict.fromkeys(POST_NORMS, lambda b: b.post_attention_layernorm),
        **dict.fromkeys(("mamba", "mamba2", "falcon_mamba"), lambda b: b.mixer),
        **dict.fromkeys(("bamba", "jamba"), lambda b: b.mamba if hasattr(b, "mamba") else b.self_attn),
        **dict.fromkeys(
            ("qwen3_5_text", "qwen3_next"), lambda b: b.linear_attn if hasattr(b, "linear_attn") else b.self_attn
        ),
        "lfm2": lambda b: b.conv if hasattr(b, "conv") else b.self_attn,
        "recurrent_gemma": lambda b: b.temporal_block,
        "rwkv": lambda b: b.attention,
    }
    return [places.get(kind_of(hf), lambda b: b.self_attn)(block) for block in block_modules(hf)]


def head_modules(hf):
    """For every block, attention's output projection, or the norm before it. Its input has the heads' outputs one after
    another."""
    places = {
        **dict.fromkeys(("bloom", "falcon"), lambda b: b.self_attention.dense),
        **dict.fromkeys(("gpt_neox", "gpt_neox_japanese"), lambda b: b.attention.dense),
        **dict.fromkeys(("gpt2", "gpt_bigcode"), lambda b: b.attn.c_proj),
        **dict.fromkeys(("gptj", "codegen", "mpt"), lambda b: b.attn.out_proj),
        "gpt_neo": lambda b: b.attn.attention.out_proj,
        **dict.fromkeys(("opt", "xglm", "biogpt"), lambda b: b.self_attn.out_proj),
        "modernbert-decoder": lambda b: b.attn.Wo,
        "bitnet": lambda b: b.self_attn.attn_sub_norm,
        **dict.fromkeys(("persimmon", "phi"), lambda b: b.self_attn.dense),
        "ctrl": lambda b: b.multi_head_attention.dense,
    }
    return [places.get(kind_of(hf), lambda b: b.self_attn.o_proj)(block) for block in block_modules(hf)]


def _llama4_expert(mlp, x, expert):
    """`expert_output` of Llama 4, whose router weighs an expert's input."""
    if expert == mlp.num_experts:
        return mlp.shared_expert(x)
    scores, _ = mlp.router(x)  # 0 for experts that are not chosen
    gate, up = ((x * scores[:, expert, None]) @ mlp.experts.gate_up_proj[expert]).chunk(2, dim=-1)
    return (up * mlp.experts.act_fn(gate)) @ mlp.experts.down_proj[expert]


def expert_output(mlp, x, expert):
    """x: (N, d) → (N, d), what one expert adds to a mixture's output: 0 in rows whose router does not choose it.

    The number after the last expert's is that of the shared one.
    """
    if type(mlp).__name__ == "Llama4TextMoe":
        return _llama4_expert(mlp, x, expert)
    router = mlp.gate if hasattr(mlp, "gate") else mlp.router
    bias = [mlp.e_score_correction_bias] if hasattr(mlp, "e_score_correction_bias") else []
    _, weights, chosen = router(x, *bias)
    parts, out = mlp.experts, torch.zeros_like(x)
    if expert == parts.num_experts:
        if hasattr(mlp, "shared_mlp"):
            return mlp.shared_mlp(x)
        if hasattr(mlp, "shared_expert"):
            gate = getattr(mlp, "shared_expert_gate", None)
            return mlp.shared_expert(x) * (1.0 if gate is None else gate(x).sigmoid())
        return mlp.shared_experts(x)
    up, down = parts.gate_up_proj[expert], parts.down_proj[expert]
    for row in range(len(x)):
        for weight, one in zip(weights[row], chosen[row].tolist(), strict=True):
            if one != expert:
                continue
            if parts.is_transposed:
                key = parts._apply_gate(x[row] @ up + parts.gate_up_proj_bias[expert])
                value = key @ down + parts.down_proj_bias[expert]
            else:
                gate, linear = (up @ x[row]).chunk(2)
                value = down @ (parts.act_fn(gate) * linear)
            out[row] += weight * value
    return out


MODULES = {"mlp": mlp_modules, "attn": attn_modules, "block": block_modules}


def change_first(out, change):
    """A module's output with `change` applied to it, or to the first of several."""
    return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)


def head_columns(hf, width, heads):
    """The columns of an output projection's input, which has `width`, that are the outputs of these heads."""
    size = width // hf.config.get_text_config().num_attention_heads
    return [column for head in heads for column in range(head * size, (head + 1) * size)]


def hook_output(hf, module, layer, change, heads=()):
    """Apply `change` to what a module gives in one layer; with module "head", to the outputs of these heads.

    Return the handle that removes the hook. With module "expert", `heads` are experts, and `change` is applied to what
    each adds to the mixture's output.
    """
    if module == "expert":

        def of_experts(mlp, args, out):
            whole = out[0] if isinstance(out, tuple) else out
            if hasattr(mlp, "experts"):
                for expert in heads:
                    part = expert_output(mlp, args[0].reshape(-1, whole.shape[-1]), expert).view(whole.shape)
                    whole = whole + change(part) - part
            return (whole, *out[1:]) if isinstance(out, tuple) else whole

        return mlp_modules(hf)[layer].register_forward_hook(of_experts)
    if module != "head":
        return MODULES[module](hf)[layer].register_forward_hook(lambda _, args, out: change_first(out, change))

    def hook(_, args):
        x = args[0].clone()
        columns = head_columns(hf, x.shape[-1], heads)
        x[..., columns] = change(x[..., columns])
        return (x, *args[1:])

    return head_modules(hf)[layer].register_forward_pre_hook(hook)


def replaced(x, shape, token, given, source):
    """A copy of x in which the sequences `given` have, at `token`, the values of the sequences `source`, or zeros if
    that is None. shape: (sequences, tokens) of x, which may have both in one dimension (OPT's MLP)."""
    whole = x.clone().view(*shape, -1)
    whole[given, token] = 0 if source is None else whole[source, token]
    return whole.view(x.shape)


class Noise(NamedTuple):
    """Noise on the embeddings of a prompt's tokens from `begin` on. added: (n, tokens, d), one for each corrupted
    pass."""

    begin: int
    added: np.ndarray


class Measured(NamedTuple):
    """What is measured of passes, each an array of one shape, or a number for a single pass.

    p, logprob: probability of the whole target, and its logarithm. At the position that predicts the first token in
    which the true and the false target differ: p_false, the probability of the false token there, and logit_diff, the
    true token's logit minus the false one's. Both are NaN where there is no such token. kl: KL(clean ‖ this pass) at
    that position, or at the one that predicts the first target token where there is none, in nats.
    """

    p: np.ndarray
    logprob: np.ndarray
    p_false: np.ndarray
    logit_diff: np.ndarray
    kl: np.ndarray


class Traced(NamedTuple):
    """clean: the clean pass. noised: the n corrupted passes. patched: (tokens, L, runs), every cell's passes."""

    clean: Measured
    noised: Measured
    patched: Measured


def measured(logits, targets, false, clean):
    """logits: (rows, K, V) where the K target tokens are predicted, clean: (K, V) those of the clean pass → the
    Measured of every row. targets, false: the true and the false target's tokens, the latter perhaps None."""
    logits, clean = logits.double(), clean.double()
    logp, clean_logp = logits.log_softmax(-1), clean.log_softmax(-1)
    logprob = sum(logp[:, k, t] for k, t in enumerate(targets))
    differ = [k for k, (true, other) in enumerate(zip(targets, false or (), strict=False)) if true != other]
    at = differ[0] if differ else 0
    p_false = logit_diff = torch.full_like(logprob, torch.nan)
    if differ:
        p_false = logp[:, at, false[at]].exp()
        logit_diff = logits[:, at, targets[at]] - logits[:, at, false[at]]
    kl = (clean_logp[at].exp() * (clean_logp[at] - logp[:, at])).sum(-1)
    return Measured(*(x.cpu().numpy() for x in (logprob.exp(), logprob, p_false, logit_diff, kl)))


@torch.no_grad()
def hooked_trace(hf, ids, targets, corrupted, window, tokens, module="mlp", method="denoise", *, heads=(), false=None):
    """Trace one fact, a forward per cell. Return Traced.

    ids: prompt ids. targets: target ids. corrupted: what makes the n corrupted passes, either Noise or n prompts' ids,
    each as many as `ids`. tokens: the prompt tokens to intervene at, each a number or a slice of several at once.
    module: "mlp", "attn", "block", "head" (the heads of the numbers `heads`, all at once) or "expert" (the experts of
    these numbers).
    method: "denoise" puts the clean row's outputs into the corrupted rows, "noise" the corrupted rows' outputs into
    clean rows, "zero" zeros into one clean row.
    false: the false target's ids, or None.
    """
    layers = len(block_modules(hf))
    noise = corrupted if isinstance(corrupted, Noise) else None
    n = len(noise.added if noise else corrupted)
    # Row 0 is the clean one. The target's tokens follow every prompt.
    prompts = [ids, *([ids] * n if noise else corrupted)]
    rows = torch.tensor([[*prompt, *targets[:-1]] for prompt in prompts], device=hf.device)
    added = torch.zeros((*rows.shape, 1), dtype=torch.float64)
    if noise:
        added = added.repeat(1, 1, noise.added.shape[2])
        added[1:, noise.begin : noise.begin + noise.added.shape[1]] = torch.as_tensor(noise.added)
    added = added.to(hf.device)
    # run: rows of (clean, corrupted …) in the batch. source, given: batch rows that give and that get outputs.
    if method == "denoise":
        run, source, given = range(n + 1), [0] * n, range(1, n + 1)
    elif method == "noise":
        run, source, given = [*range(1, n + 1), *[0] * n], range(n), range(n, 2 * n)
    else:
        run, source, given = [0], None, [0]
    run, source, given = list(run), source and list(source), list(given)

    def logits_of(which, change=None, where=()):
        """Logits (rows, K, V) of the rows `which`, with `change` applied in the layers `where`."""

        def corrupt(_, args, out):
            return (out.double() + added[which]).to(out.dtype)

        handles = [hf.get_input_embeddings().register_forward_hook(corrupt)]
        handles += [hook_output(hf, module, layer, change, heads) for layer in where]
        try:
            return hf(rows[which]).logits[:, len(ids) - 1 :]
        finally:
            for handle in handles:
                handle.remove()

    base = logits_of(list(range(n + 1)))
    every = measured(base, targets, false, base[0])
    cells = np.zeros((len(Measured._fields), len(tokens), layers, len(given)))
    for i, token in enumerate(tokens):

        def change(x, token=token):
            return replaced(x, (len(run), rows.shape[1]), token, given, source)

        for layer in range(layers):
            low, high = max(0, layer - window // 2), min(layers, layer - (-window // 2))
            logits = logits_of(run, change, range(low, high))[given]
            cells[:, i, layer] = measured(logits, targets, false, base[0])
    return Traced(Measured(*(x[0] for x in every)), Measured(*(x[1:] for x in every)), Measured(*cells))
