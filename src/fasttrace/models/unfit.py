"""Why."""


def why_not(model_type: str) -> str:
    return "x"
