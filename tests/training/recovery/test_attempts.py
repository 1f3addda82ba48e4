"""What training says of a machine that is too small for it."""

from unittest.mock import Mock

import pytest
import torch

from ftkit.config.files import load_config
from ftkit.config.recompute import Recompute
from ftkit.config.tree import BatchConfig, RunConfig
from ftkit.errors import DoesNotFitError
from ftkit.machine.process import ProcessContext
from ftkit.training.recovery.attempts import Attempts, explained_memory
from ftkit.training.recovery.limits import Limits


def test_memory_that_runs_out_on_a_cpu_is_said_with_the_cures():
    cures = pytest.raises(DoesNotFitError, match=r"can't allocate memory.* Try .*recompute=cheap or layer")
    with cures, explained_memory(RunConfig()):
        torch.empty(2**55, dtype=torch.uint8)


def test_another_failure_keeps_its_own_words():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), explained_memory(RunConfig()):
        torch.ones(2, 3) @ torch.ones(2, 3)


GROUPED = ["method.name=lora", "engine.stream_layers=disk", "engine.stream_micro_batches=all"]


def test_micro_batches_that_share_a_layer_s_way_are_the_first_cure():
    cures = pytest.raises(DoesNotFitError, match=r"Try engine\.stream_micro_batches=1 .*batch\.micro_batch")
    with cures, explained_memory(load_config(settings=GROUPED)):
        torch.empty(2**55, dtype=torch.uint8)


@pytest.mark.parametrize("groups", [True, False])
def test_the_smallest_limits_that_do_not_fit_name_that_cure_where_it_applies(groups):
    engine = Mock(device=torch.device("cpu"), process=ProcessContext())
    smallest = Limits(BatchConfig(micro_batch_size=1), Recompute(layer=1.0))
    attempts = Attempts(engine, smallest, 8, Mock(), Mock(), Mock(), Mock(), groups)
    with pytest.raises(DoesNotFitError, match="every layer recomputed") as raised:
        attempts.shrink(1, "no room")
    assert ("try engine.stream_micro_batches=1 (" in str(raised.value)) == groups
