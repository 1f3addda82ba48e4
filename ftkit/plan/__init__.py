"""Predict what a configuration needs and how long it takes, before it runs.

The room is callable: `ftkit.plan(config, gpu="t4")` is `ftkit.plan.ask.plan`. Importing a file of this room sets the
name `plan` of the package to the room, so a function of that name would be gone after the first such import.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftkit.records.schema import Prediction


class _Callable(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> "Prediction":
        """Predict what a configuration needs; see `ftkit.plan.ask.plan`."""
        from ftkit.plan.ask import plan

        return plan(*arguments, **options)


sys.modules[__name__].__class__ = _Callable  # Python reference, 3.3.2: customizing module attribute access
