"""The Hugging Face hub, asked once whether it answers, before its client asks many times."""

import os
import socket
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from ftkit.config.tree import DEMO

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
    if os.environ.get("HF_HUB_OFFLINE") or not any(_may_be_on_the_hub(name) for name in names) or _answers():
        return False
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    return True


def _may_be_on_the_hub(name: str) -> bool:
    return name != DEMO and not name.startswith((".", "/", "~")) and not Path(name).exists()


def _answers() -> bool:
    """Try to connect; behind a proxy, only the client itself can find out."""
    if urllib.request.getproxies():
        return True
    place = urlsplit(os.environ.get("HF_ENDPOINT") or _ENDPOINT)
    try:
        socket.create_connection((place.hostname or "", place.port or 443), timeout=_SECONDS).close()
    except OSError:
        return False
    return True
