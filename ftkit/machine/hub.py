"""The Hugging Face hub, asked once whether it answers, before its client asks many times."""

import os
import socket
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from ftkit.config.paths import is_there, looks_like_path
from ftkit.config.tree import DEMO
from ftkit.errors import DeviceError

_ENDPOINT = "https://huggingface.co"
_SECONDS = 3.0


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
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi()
    try:
        place = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, ignore_patterns=list(without))
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DeviceError(
            f"cannot upload {folder} as {name}: {reason}; the folder is whole: log in with `hf auth login`, and try "
            f"`hf upload {name} {folder}`"
        ) from error
    return str(place)


def _may_be_on_the_hub(name: str) -> bool:
    return name != DEMO and not looks_like_path(name)
