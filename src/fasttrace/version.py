"""fasttrace's version: the packaging reads it from here, and so do runs, which it names."""

VERSION = "0.1.0"
