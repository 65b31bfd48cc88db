"""What is read from a transformers config: its text decoder's part, and what affects the computation."""

import re
from typing import Any

# Keys of a config, and of the configs inside a multimodal one, that do not affect the computation.
IRRELEVANT = ("_name_or_path", "transformers_version", "quantization_config", "dtype", "torch_dtype")
# Multimodal models whose logits transformers (5.24) neither scales nor caps, whatever their text config says.
PLAIN_LOGITS = ("aya_vision", "cohere2_vision", "gemma3", "granite_speech", "granite_speech_plus", "shieldgemma2")


def text_config(config: Any) -> Any:
    """The config of the text decoder in a multimodal model's config. Of any other config, the config itself."""
    return config.get_text_config(decoder=True)


def keeps_float32(hf: Any, path: str) -> bool:
    """Whether transformers keeps a parameter, such as a router's, in float32 whatever dtype the model is loaded in."""
    names = getattr(hf, "_keep_in_fp32_modules_strict", None) or ()
    return any(re.search(rf"(^|\.){name}($|\.)", path) for name in names)


def relevant(config: dict[str, Any]) -> dict[str, Any]:
    """A config's entries without those that do not affect the computation, of whatever depth."""
    kept = {key: value for key, value in config.items() if key not in IRRELEVANT}
    return {key: relevant(value) if isinstance(value, dict) else value for key, value in kept.items()}
