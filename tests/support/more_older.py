"""Configs of more small models: older layouts and text models inside multimodal ones. Used by small_models.py."""


def configs(vocab_size: int):
    """Family or variant → config of a model of some 100,000 parameters."""
    return {}
