import pytest
import torch

from ftkit.config.training import OptimizerConfig, ScheduleConfig
from ftkit.engine.optim import build_optimizer, learning_rate_at, parameter_groups


def rates(name, num_steps=100, **fields):
    config = ScheduleConfig(name=name, **fields)
    return [learning_rate_at(step, num_steps, config, 1.0) for step in range(1, num_steps + 1)]


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
def test_the_rate_rises_over_the_warm_up_and_never_passes_its_peak(name):
    found = rates(name, warmup_ratio=0.1)
    assert found[:10] == sorted(found[:10])
    assert 0 < found[0] < found[9] < 1
    assert found[10] == max(found) == 1.0


@pytest.mark.parametrize(("name", "half"), [("linear", 0.5), ("cosine", 0.5)])
def test_the_rate_falls_to_half_in_the_middle_and_towards_zero_at_the_end(name, half):
    found = rates(name, warmup_ratio=0.0)
    assert found[50] == pytest.approx(half)
    assert found == sorted(found, reverse=True)
    assert 0 < found[-1] < 0.02


def test_a_constant_schedule_stays_at_the_peak_after_the_warm_up():
    assert set(rates("constant", warmup_steps=5)[5:]) == {1.0}


def test_warm_up_steps_win_over_the_ratio():
    assert ScheduleConfig(warmup_ratio=0.5, warmup_steps=3).num_warmup_steps(100) == 3
    assert ScheduleConfig().num_warmup_steps(100) == 6


def test_matrices_decay_and_vectors_do_not():
    groups = parameter_groups({"weight": torch.zeros(2, 3), "bias": torch.zeros(3)}, 0.1)
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(1, 0.1), (1, 0.0)]


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"])
def test_every_optimizer_moves_a_weight_against_its_gradient(name):
    # bitsandbytes keeps tensors of fewer than 4096 elements in fp32, hence the size.
    weight = torch.nn.Parameter(torch.ones(128, 64))
    optimizer = build_optimizer({"weight": weight}, OptimizerConfig(name=name))
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert torch.isfinite(weight).all()
    assert (weight < 1).all()
