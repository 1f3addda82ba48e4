"""The Hugging Face hub, asked once whether it answers, before its client asks many times."""

import os
import socket
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from ftkit.config.paths import is_there, looks_like_path
from ftkit.config.tree import DEMO
from ftkit.errors import DeviceError
from ftkit.machine import foreign

_ENDPOINT = "https://huggingface.co"
_SECONDS = 3.0
_NOT_ALLOWED = (401, 403)
"""The answers to whoever is not logged in, or may not do what was asked for."""


def work_offline_if_unreachable(names: Iterable[str]) -> bool:
    """Let the hub's client use its cache alone, where a name is the hub's and the hub does not answer.

    Its client would retry for most of a minute. It reads HF_HUB_OFFLINE when it is imported, so call this before.

    Args:
        names: of models and datasets; those of local files ask nothing.

    Returns:
        Whether the cache is all there is.
    """
    if os.environ.get("HF_HUB_OFFLINE") or not any(_may_be_on_the_hub(name) for name in names) or answers():
        return False
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    return True


def is_cached(name: str) -> bool:
    """Return whether the hub's cache on this machine has something of a model."""
    return is_there(hub_cache() / f"models--{name.replace('/', '--')}")


def hub_cache() -> Path:
    """Return where the hub's client keeps models (its layout: huggingface_hub, cache), without importing it."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")


def answers() -> bool:
    """Return whether the hub takes a connection; behind a proxy, only the client itself can find out."""
    if urllib.request.getproxies():
        return True
    place = urlsplit(os.environ.get("HF_ENDPOINT") or _ENDPOINT)
    try:
        socket.create_connection((place.hostname or "", place.port or 443), timeout=_SECONDS).close()
    except OSError:
        return False
    return True


def check_login(name: str) -> None:
    """Refuse to upload where the hub does not answer, does not know who asks, or can have no model of the name.

    Args:
        name: of a model, such as `me/my-model`.

    Raises:
        DeviceError: the upload would be refused.
    """
    from huggingface_hub import HfApi

    with _explained(name, lambda error: f"nothing has been made yet: {_cure_before(error)}"):
        HfApi().whoami()
        HfApi().repo_exists(name)  # refuses names that are not valid, whether there is such a model or not


def upload(folder: Path, name: str, without: Sequence[str] = ()) -> str:
    """Upload a folder as a model, private where the model is new.

    Args:
        folder: what is uploaded.
        name: of the model, such as `me/my-model`.
        without: files that stay here.

    Returns:
        The address of the model.

    Raises:
        DeviceError: the hub does not answer, does not know who asks, or refuses the name.
    """
    from huggingface_hub import HfApi

    left_out = "".join(f" --exclude {file}" for file in without)
    with _explained(name, lambda _: f"the folder is whole: try `hf upload {name} {folder}{left_out}`"):
        place = HfApi().create_repo(name, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder, ignore_patterns=list(without))
    return str(place)


@contextmanager
def _explained(name: str, cure: Callable[[Exception], str]) -> Iterator[None]:
    """Tell whatever an upload ends with as one sentence.

    Of large files the client raises RuntimeError, of names and of answers that are not the hub's ValueError; all else
    is an error of the system or of the connection.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError, foreign.hub_connection_error()) as error:
        reasons = [" ".join(str(one).split()).rstrip(".") for one in (error, error.__cause__) if one is not None]
        told = ": ".join(dict.fromkeys(filter(None, reasons)))[:300] or type(error).__name__
        raise DeviceError(f"cannot upload {name}: {told}; {cure(error)}") from error


def _cure_before(error: Exception) -> str:
    """Return what to do about what a hub was asked before anything was made."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, LocalTokenNotFoundError) or status in _NOT_ALLOWED:
        return "log in with `hf auth login`, and try again"
    return "give another name" if isinstance(error, HFValidationError) else "try again when the hub answers"


def _may_be_on_the_hub(name: str) -> bool:
    return name != DEMO and not looks_like_path(name)
