"""Errors a caller may catch. Every message is one sentence: what, where, what was wanted."""


class FasttraceError(Exception):
    """Base of everything fasttrace raises on purpose."""


class UserError(FasttraceError):
    """Bad input; the command line prints the sentence and exits with 2."""


class FactError(UserError):
    """A fact record that cannot be used."""


class ModelError(UserError):
    """A model that cannot be loaded, or a family without an adapter."""


class StoreError(UserError):
    """A store that cannot be opened, read or written."""


class PackageError(UserError, ImportError):
    """A package that is needed here and not installed."""
