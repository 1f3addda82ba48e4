"""A model whose adapters run lean trains as one whose adapters are PEFT's own."""

import pytest
import torch

from ftkit.machine.process import ProcessContext
from ftkit.models.kernels import lora_linear
from tests.helpers import build, ragged_split, save_tiny_model, take_steps


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_losses_and_norms_are_those_of_separate_modules(tmp_path, family, method):
    model = save_tiny_model(tmp_path / family, family)
    outcomes = []
    for lean in ("false", "true"):
        settings = [f"method.name={method}", f"model.lean={lean}", "batch.global_batch_size=8"]
        config, engine = build(settings, model, torch.float32, ProcessContext())
        outcomes.append(take_steps(config, engine, ragged_split("sequence-classification")))
    # fp32: the adapter's part is rounded once less.
    assert outcomes[1].losses == pytest.approx(outcomes[0].losses, rel=1e-5)
    assert outcomes[1].norms == pytest.approx(outcomes[0].norms, rel=1e-4)


def lean_layers(model):
    named = model.named_modules()
    return [name for name, module in named if isinstance(vars(module).get("forward"), lora_linear._LeanForward)]


def test_every_adapter_of_a_plain_lora_runs_lean_and_none_of_dora_does(tmp_path):
    model = save_tiny_model(tmp_path / "bert", "bert")
    _, engine = build(["model.lean=true"], model, torch.float32, ProcessContext())
    adapters = [name for name, module in engine.model.named_modules() if hasattr(module, "lora_A")]
    assert lean_layers(engine.model) == adapters
    lora_linear.make_plain(engine.model)
    assert not lean_layers(engine.model)
    _, engine = build(["model.lean=true", "method.use_dora=true"], model, torch.float32, ProcessContext())
    assert not lean_layers(engine.model)
