"""What training says of a machine that is too small for it."""

import pytest
import torch

from ftkit.config.tree import RunConfig
from ftkit.errors import DoesNotFitError
from ftkit.training.recovery.attempts import explained_memory


def test_memory_that_runs_out_on_a_cpu_is_said_with_the_cures():
    cures = pytest.raises(DoesNotFitError, match=r"can't allocate memory.* Try .*recompute=cheap or layer")
    with cures, explained_memory(RunConfig()):
        torch.empty(2**55, dtype=torch.uint8)


def test_another_failure_keeps_its_own_words():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), explained_memory(RunConfig()):
        torch.ones(2, 3) @ torch.ones(2, 3)
