"""Fine-tune transformer models where memory is scarce: planned before, exact while, proven after.

    import ftkit

    config = ftkit.load_config(settings=["model.name=gpt2", "data.dataset=reviews.csv", "method.name=lora"])
    print(ftkit.plan(config, gpu="t4").peak_process_bytes)
    print(ftkit.train(config).evaluations[-1].accuracy)
    print(ftkit.read_record("runs/gpt2-reviews-lora").result)

Each name is imported when it is first used: `import ftkit` alone loads no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftkit.config.files import load_config as load_config
    from ftkit.plan.ask import plan as plan
    from ftkit.records.files import read_record as read_record
    from ftkit.training.train import train as train

__version__ = "0.2.0"
__all__ = ["load_config", "plan", "read_record", "train"]

_HOMES = {
    "load_config": "ftkit.config.files",
    "read_record": "ftkit.records.files",
    "train": "ftkit.training.train",
}


def __getattr__(name: str) -> Any:
    """Import a public function when it is first asked for."""
    if name == "plan":  # the room itself, which can be called: importing any file of it sets this name to the room
        return importlib.import_module("ftkit.plan")
    if name not in _HOMES:
        raise AttributeError(f"module 'ftkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return [*__all__, "__version__"]
