"""Model types of transformers that fasttrace does not drive, and what about each does not fit its blocks.

A block adds the output of attention to the residual stream and then that of an MLP (see `adapter.py`), and each row
depends on other rows only through attention. The clauses are from transformers' modeling files (5.24).
"""

from typing import NamedTuple

WAY_OUT = 'trace it with method="hooked" (--method hooked), which is slow'


class Unfit(NamedTuple):
    """Model types that do not fit for one reason.

    clause: what does not fit, after "it". types: `config.model_type`, separated by spaces.
    traceable: whether the type is a causal decoder with one output per layer, which plain forward passes can trace.
    module: what they can trace of a type that has no MLPs.
    """

    clause: str
    types: str
    traceable: bool = True
    module: str = "mlp"


# What fits in principle. A type is taken out when a file in families/ drives it.
EXPERTS = Unfit(
    "is a mixture of experts whose routing has no adapter yet",
    "afmoe aria_text axk1 cohere2_moe dbrx ernie4_5_vl_moe_text flint glm4v_moe_text granitemoe_swa granitemoeshared"
    " kolibri1 laguna mellum mimo_v2_flash qwen3_omni_moe_text sarvam_mla sarvam_moe",
)

UNFIT = (
    EXPERTS,
    Unfit("has state-space layers (Mamba) and neither attention nor MLPs", "mamba mamba2 falcon_mamba", module="attn"),
    Unfit(
        "has state-space layers (Mamba) in place of attention or beside it",
        "bamba falcon_h1 jamba nemotron_h zamba zamba2",
    ),
    Unfit("has recurrent layers in place of attention", "rwkv xlstm recurrent_gemma"),
    Unfit(
        "has linear attention in some layers, a state that is updated token by token",
        "bailing_hybrid kimi_linear lara_mini minimax olmo_hybrid qwen3_5_moe_text qwen3_5_text qwen3_next",
    ),
    Unfit(
        "has convolutions over neighbouring tokens, in place of attention or in it",
        "inkling_text lfm2 lfm2_moe lfm3 zaya",
    ),
    Unfit(
        "chooses the tokens that a query attends to by an indexer of its own",
        "axk2 deepseek_v32 dots3_note_text glm_moe_dsa minimax_m3_vl_text",
    ),
    Unfit(
        "has several residual streams, which every layer mixes (hyper-connections)", "deepseek_v4 hy_v4 qwen4_exp_text"
    ),
    Unfit("feeds a layer with the outputs of many layers before it", "inkling2_text"),
    Unfit("runs its layers several times in one pass", "dory hrm_text inkling2_loop_text", traceable=False),
    Unfit(
        "has layers that share keys and values or get inputs of their own for each token",
        "gemma3n_text gemma4_text gemma4_unified_text",
    ),
    Unfit(
        "drafts for another model, whose keys and values it reads",
        "gemma4_assistant gemma4_unified_assistant",
        traceable=False,
    ),
    Unfit("has two attentions and three MLPs in a layer", "longcat_flash"),
    Unfit("has a mixture of experts as its attention, too", "jetmoe"),
    Unfit("has heads that are differences of two attentions", "diffllama"),
    Unfit("scales the residual stream itself in every layer", "beam doge"),
    Unfit("norms the residual stream itself after every sub-layer", "openai-gpt"),
    Unfit("attends by hashes, with two residual streams", "reformer"),
    Unfit("reads bytes, in patches, through three stacks of layers", "blt", traceable=False),
    Unfit("puts a learned prompt before every text and attends to it in both directions", "cpmant", traceable=False),
    Unfit("attends to images in some layers (cross-attention)", "mllama_text_model"),
    Unfit("is given sounds with every token of text", "moshi", traceable=False),
    Unfit("takes no prompt without an image", "blip-2 instructblip instructblipvideo", traceable=False),
    Unfit("is the decoder of images into text, and norms the residual stream itself after every sub-layer", "git"),
    Unfit(
        "is an encoder, with attention in both directions and another head than an unembedding",
        "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta"
        " roberta-prelayernorm roc_bert roformer xlm xlm-roberta xlm-roberta-xl xlnet xmod",
        traceable=False,
    ),
    Unfit(
        "is the decoder of an encoder-decoder model, whose layers attend to the encoder",
        "bart bigbird_pegasus blenderbot blenderbot-small marian mbart musicgen musicgen_decoder musicgen_melody"
        " musicgen_melody_decoder mvp pegasus plbart prophetnet trocr whisper",
        traceable=False,
    ),
)

_BY_TYPE = {model_type: group for group in UNFIT for model_type in group.types.split()}


def is_explained(model_type: str) -> bool:
    """Whether a model type is one of those that are known not to fit."""
    return model_type in _BY_TYPE


def clause_of(model_type: str) -> str:
    """What about a model type does not fit, as a clause whose subject is the type."""
    return _BY_TYPE[model_type].clause


def is_traceable(model_type: str) -> bool:
    """Whether plain forward passes may trace a type that has no adapter, as far as is known."""
    group = _BY_TYPE.get(model_type)
    return group is None or group.traceable


def why_not(model_type: str) -> str:
    """Why a model type has no adapter, and the way out if there is one, as the end of a sentence."""
    group = _BY_TYPE.get(model_type)
    if group is None:
        return (
            "an adapter names the embedding, the position rule, each block's norms, query/key/value, attention output, "
            "MLP key and down-projection, the final norm and the unembedding, in one file of "
            f"src/fasttrace/models/families/; until then, {WAY_OUT}"
        )
    way_out = WAY_OUT
    if group.module != "mlp":
        named = f'method="hooked", module="{group.module}" (--method hooked --module {group.module})'
        way_out = f"trace it with {named}, which is slow"
    return f"it {group.clause}" + (f"; {way_out}" if group.traceable else "")
