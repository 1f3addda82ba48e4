"""A formula's parts of a step are shared out and offloaded as those of a traced step are."""

from types import SimpleNamespace

import pytest

from ftkit.config.files import load_config
from ftkit.engine.resolve import Devices, resolve
from ftkit.plan.needs.fallback import Elsewhere, shared_out
from ftkit.records.figures import MemoryBreakdown

# Of 1000 elements in half precision, of which 300 train, and 8 layers.
PARTS = MemoryBreakdown(
    parameter_bytes=2000, gradient_bytes=1200, optimizer_bytes=3600, activation_bytes=800, temporary_bytes=50
)
DEEP = SimpleNamespace(num_hidden_layers=8)
BOTH = ("engine.offload_optimizer=cpu", "engine.offload_parameters=cpu")
NVME = ("engine.offload_optimizer=nvme", "engine.offload_parameters=nvme", "engine.nvme_path=/tmp")


@pytest.mark.parametrize(
    ("settings", "held", "elsewhere"),
    [
        ([], (2000, 1200, 3600), Elsewhere()),
        (["engine.zero_stage=1"], (2000, 1200, 900), Elsewhere()),
        (["engine.zero_stage=2"], (2000, 300, 900), Elsewhere()),
        (["engine.zero_stage=3"], (500, 300, 900), Elsewhere()),
        (["engine.zero_stage=2", BOTH[0]], (2000, 300, 0), Elsewhere(900, 900)),
        (["engine.zero_stage=3", BOTH[0]], (500, 0, 0), Elsewhere(1200, 1200)),
        (["engine.zero_stage=3", *BOTH], (0, 0, 0), Elsewhere(1700, 1700)),
        (["engine.zero_stage=3", *NVME], (0, 0, 0), Elsewhere(nvme_bytes=1700)),
    ],
    ids=lambda value: "-".join(value) or "plain" if isinstance(value, list) else "",
)
def test_weights_gradients_and_moments_lie_where_zero_puts_them(settings, held, elsewhere):
    run = resolve(load_config(settings=["model.precision=bf16", *settings]), Devices("cuda", True, 4, "none"))
    parts, away = shared_out(PARTS, run, DEEP)
    assert (parts.parameter_bytes, parts.gradient_bytes, parts.optimizer_bytes) == held
    assert (parts.activation_bytes, parts.temporary_bytes) == (800, 50)
    assert away == elsewhere


def test_activations_wait_on_the_host_but_for_those_of_two_layers():
    run = resolve(load_config(settings=["model.offload_activations=true"]), Devices("cuda", True, 1, "none"))
    parts, away = shared_out(PARTS, run, DEEP)
    assert (parts.activation_bytes, away) == (200, Elsewhere(600, 600))
