"""Environment of every test: no network, no launcher, no surprises. Set before anything imports transformers."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads and the forks of a data loader do not mix
for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
    os.environ.pop(name, None)  # a test is one process unless it starts others


# What frozen layers compute is kept apart from the user's own; models that were converted once need no second time.
_caches = Path(
    os.environ.get("FTKIT_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "ftkit"
).expanduser()
(_caches / "gguf").mkdir(parents=True, exist_ok=True)
_own = Path(tempfile.mkdtemp(prefix="ftkit-tests-"))
(_own / "gguf").symlink_to(_caches / "gguf")
os.environ["FTKIT_CACHE"] = str(_own)
atexit.register(shutil.rmtree, _own, ignore_errors=True)


def pytest_addoption(parser):
    """Let the golden texts be written anew; see tests/golden/conftest.py."""
    parser.addoption("--regenerate", action="store_true", help="write the texts of tests/golden anew")


def pytest_collection_modifyitems(items):
    """Run the contracts with other libraries first: what an upgrade has renamed, they say by its name."""
    items.sort(key=lambda item: "tests/contracts/" not in item.nodeid)


# A busy machine is no failure, so no deadline.
settings.register_profile("ftkit", deadline=None)
settings.load_profile("ftkit")
