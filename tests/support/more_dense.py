"""Configs of more small models: attention and one MLP a layer, most of them like Llama. Used by small_models.py."""


def configs(vocab_size: int):
    """Family or variant → config of a model of some 100,000 parameters."""
    return {}
