"""A process that edits a model which is larger than the memory that it may use: `python larger_than_memory.py FOLDER`.

The limit is one of the system (RLIMIT_DATA): what the process may allocate beyond what it has after its imports, the
weights that are mapped from their files included.
"""

import json
import resource
import sys
from contextlib import ExitStack
from pathlib import Path

import torch

MEMORY = 10**9  # bytes beyond the imports
LAYER = 16
SIZES = {"hidden_size": 1536, "intermediate_size": 3072, "num_hidden_layers": 32, "num_attention_heads": 12}


def write_model(folder: Path, tokenizer) -> int:
    """Write a random model of 3 GB. Returns the bytes of its weights.

    Each weight has a file of its own. safetensors maps the whole file for every tensor that it reads, and counts as
    allocated what is mapped.
    """
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **SIZES)
    with torch.device("meta"):
        hf = LlamaForCausalLM(config)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    generator, index, total = torch.Generator().manual_seed(0), {}, 0
    for number, (name, weight) in enumerate(hf.named_parameters()):
        shape = weight.shape
        made = torch.randn(shape, generator=generator).mul_(0.02) if len(shape) > 1 else torch.ones(shape)
        index[name] = f"model-{number:05d}.safetensors"
        save_file({name: made}, folder / index[name], metadata={"format": "pt"})
        total += made.nbytes
    about = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(about))
    return total


def status(name: str) -> int:
    """A number of /proc/self/status, in bytes."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def main(folder: Path) -> None:
    """Edit the model, and then try to have all its layers at once. Print what was found."""
    import accelerate  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import fasttrace as ft

    torch.set_num_threads(1)
    data, resident = status("VmData"), status("VmRSS")
    model = ft.load_model(folder, device={"": "disk"})
    # Only now, because transformers maps all files for a moment while it loads.
    resource.setrlimit(resource.RLIMIT_DATA, (data + MEMORY, data + MEMORY))
    fact = ft.Fact(prompt="The {} is in the city of", subject="Eiffel Tower", target_true="Paris", target_false="Rome")
    asked = {"corpus": folder / "text.txt", "corpus_tokens": 300, "ridge": 1e-2, "contexts": ["{}"], "essence": 0}
    result = ft.edit(model, [fact], method="rome", layers=[LAYER], steps=3, **asked)
    [row] = result.scores.to_pylist()
    found = {name: row[name] for name in ("p_before", "p_after", "reason")}
    found["grown"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - resident
    try:
        with ExitStack() as stack:
            for layer in range(model.n_layers):
                stack.enter_context(model.brought(layer))
        found["all_layers"] = "fit"
    except (RuntimeError, MemoryError) as error:
        found["all_layers"] = str(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
