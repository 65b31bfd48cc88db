"""Attribution patching the obvious way: one transformers forward with hooks, retain_grad, and inner products.

It uses nothing of fasttrace's engine. Source: Nanda 2023, "Attribution patching".
"""

import torch
from hooked_trace import MODULES, Noise, block_modules, change_first, head_columns, head_modules


def hook(hf, module, layer, change):
    """Apply `change` to what a module adds to the residual stream, or to the residual itself ("block"), or to the
    heads' outputs ("head"), in one layer. Return the handle that removes the hook."""
    if module == "head":
        return head_modules(hf)[layer].register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    block = block_modules(hf)[layer]
    # A slope at a norm's input is not the one at its output.
    normed = getattr(block, "post_feedforward_layernorm", None) if module == "mlp" else None
    place = MODULES[module](hf)[layer] if normed is None else normed
    return place.register_forward_hook(lambda _, args, out: change_first(out, change))


def hooked_attribution(hf, ids, targets, corrupted, module, nudge=None, *, head=0, false=None):
    """Return a score of each pass, (1 + n,) with the clean pass first, and its slopes (L, tokens, n).

    slopes: ⟨∂ score / ∂ output, clean output − output⟩ of each corrupted pass. corrupted, module: as in `hooked_trace`;
    module "head" is the head of number `head`.
    The score is log p of the whole target; with the ids `false` of the false target, the logit difference where the two
    first differ.
    nudge: (token, layers, ε). With it, the score is measured with ε (clean − corrupted) added to the outputs of these
    layers at this token.
    """
    noise = corrupted if isinstance(corrupted, Noise) else None
    n = len(noise.added if noise else corrupted)
    prompts = [ids, *([ids] * n if noise else corrupted)]
    x = hf.get_input_embeddings()(torch.tensor([[*prompt, *targets[:-1]] for prompt in prompts])).detach()
    if noise:
        hit = slice(noise.begin, noise.begin + noise.added.shape[1])
        x[1:, hit] = (x[1:, hit].double() + torch.as_tensor(noise.added)).to(x.dtype)
    outputs = []

    def keep(out):
        if out.requires_grad:
            out.retain_grad()
        outputs.append(out)
        return out

    def score_of():
        logits, at = hf(inputs_embeds=x).logits.double(), len(ids) - 1
        if false is None:
            return sum(logits.log_softmax(-1)[:, at + k, t] for k, t in enumerate(targets))
        k = next(k for k, (true, other) in enumerate(zip(targets, false, strict=False)) if true != other)
        return logits[:, at + k, targets[k]] - logits[:, at + k, false[k]]

    hooks = [hook(hf, module, layer, keep) for layer in range(len(block_modules(hf)))]
    x.requires_grad_(True)
    score = score_of()
    score[1:].sum().backward()
    for handle in hooks:
        handle.remove()
    columns = head_columns(hf, outputs[0].shape[-1], [head]) if module == "head" else slice(None)
    moved = [(out[:1] - out[1:]).detach()[..., columns] for out in outputs]
    slopes = [(out.grad[1:][..., columns] * m).sum(-1).T for out, m in zip(outputs, moved, strict=True)]
    if nudge is None:
        return score.detach().numpy(), torch.stack(slopes).numpy()
    token, nudged, size = nudge

    def add(layer):
        def change(out):
            whole = out.clone()
            whole[1:, token, columns] += size * moved[layer][:, token]
            return whole

        return change

    hooks = [hook(hf, module, layer, add(layer)) for layer in nudged]
    with torch.no_grad():
        score = score_of()
    for handle in hooks:
        handle.remove()
    return score.numpy(), torch.stack(slopes).numpy()
