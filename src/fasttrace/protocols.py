"""The two protocols: the paper's text, and what its released code does where the two differ."""

from fasttrace.errors import UserError

PROTOCOLS = ("paper", "released")


def check_protocol(protocol: str) -> str:
    """The protocol itself. Raises UserError where it is neither "paper" nor "released"."""
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol '{protocol}' is not one of {', '.join(PROTOCOLS)}")
    return protocol
