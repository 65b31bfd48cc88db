"""The two protocols: "paper" follows the paper's text, and "released" its released code where the two differ."""

from typing import Literal

Protocol = Literal["paper", "released"]
