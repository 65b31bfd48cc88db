"""fasttrace's version. The packaging reads it, and it is part of a run's name."""

VERSION = "0.2.0"
