"""Errors a caller may catch. Every message is one sentence: where, what was expected, and what was given instead."""


class FasttraceError(Exception):
    """Base of every error that fasttrace raises on purpose."""


class UserError(FasttraceError):
    """Bad input. The command line prints the message and exits with code 2."""


class FactError(UserError):
    """A fact record that cannot be used."""


class ModelError(UserError):
    """A model that cannot be loaded, or a family without an adapter."""


class StoreError(UserError):
    """A store that cannot be opened, read or written."""


class PackageError(UserError, ImportError):
    """A package that is needed here but not installed."""
