"""Which model types of transformers fasttrace drives, and why it does not drive the others."""

import pytest
import transformers as tf
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from fasttrace.errors import ModelError
from fasttrace.models import families  # noqa: F401  every family registers itself
from fasttrace.models.adapter import Decoder, adapter_for
from fasttrace.models.configs import text_config
from fasttrace.models.unfit import UNFIT, is_explained


def test_every_causal_type_of_transformers_is_driven_or_explained():
    def is_known(model_type):
        return model_type in Decoder.registry or is_explained(model_type)

    others = [t for t in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if not is_known(t)]
    decoders = {t: text_config(tf.CONFIG_MAPPING[t]()).model_type for t in others}  # inside multimodal models
    assert {t: decoder for t, decoder in decoders.items() if not is_known(decoder)} == {}


def test_no_type_is_explained_twice_or_although_it_is_driven():
    types = [t for group in UNFIT for t in group.types.split()]
    assert len(types) == len(set(types))
    assert set(types) & set(Decoder.registry) == set()


WAY_OUT = r'[;,] trace it with method="hooked" \(--method hooked\), which is slow$'


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (lambda: tf.MambaConfig(), "^model type 'mamba' has no adapter: it has .* --module attn\\), which is slow$"),
        (lambda: tf.Qwen3NextConfig(), "^model type 'qwen3_next' has no adapter: it has linear attention .*" + WAY_OUT),
        (lambda: tf.BertConfig(), "^model type 'bert' has no adapter: it is an encoder, .* than an unembedding$"),
        (lambda: tf.BartConfig(), "^model type 'bart' has no adapter: it is the decoder .* attend to the encoder$"),
        (
            lambda: tf.MllamaConfig(),
            "^model type 'mllama_text_model', the text decoder of this 'mllama' model, has no adapter: it attends to "
            "images .*" + WAY_OUT,
        ),
        (lambda: tf.Blip2Config(), "^model type 'blip-2' has no adapter: it takes no prompt without an image$"),
        (lambda: tf.GPT2Config(add_cross_attention=True), "^this 'gpt2' model has no adapter: it attends to an enc"),
        (
            lambda: tf.MptConfig(attn_config={"alibi_bias_max": 16}),
            "^this 'mpt' model has no adapter: transformers .* only with alibi_bias_max = 8, got 16$",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_one_sentence(config, words):
    with pytest.raises(ModelError, match=words) as error:
        adapter_for(config())
    assert "\n" not in str(error.value)


def test_the_refusal_of_an_unknown_type_lists_what_an_adapter_names():
    class Config(tf.LlamaConfig):
        model_type = "unheard-of"

    words = r"^model type 'unheard-of' has no adapter: an adapter names the embedding.* down-projection.*" + WAY_OUT
    with pytest.raises(ModelError, match=words):
        adapter_for(Config())
