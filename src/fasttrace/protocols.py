"""The two protocols: "paper" follows the paper's text, and "released" its released code where the two differ."""

from typing import Literal, get_args

from fasttrace.errors import UserError

Protocol = Literal["paper", "released"]
PROTOCOLS = get_args(Protocol)


def check_protocol(protocol: str) -> str:
    """Return the protocol. Raises UserError where it is neither "paper" nor "released"."""
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got '{protocol}'")
    return protocol
