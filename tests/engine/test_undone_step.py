"""A step that is undone, however far it came, leaves nothing behind: the steps after it are those of a run without."""

import pytest
import torch

from ftkit.data import batching
from ftkit.machine.process import ProcessContext, joined
from ftkit.models.build import set_training
from tests.helpers import PADDING, build, ragged_split, save_tiny_model, take_steps

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Each has sums of another kind: of the plain engine in each dtype; of each stage's optimizer, of stage 1's own for
# bf16, and of those that keep sums on the host.
ENGINES = [
    *(("engine.zero_stage=0", dtype) for dtype in DTYPES),
    *(("engine.zero_stage=1", dtype) for dtype in DTYPES),
    *(("engine.zero_stage=2", dtype) for dtype in ("fp32", "fp16")),
    *(("engine.zero_stage=3", dtype) for dtype in ("fp32", "bf16")),
    ("engine.zero_stage=2 engine.offload_optimizer=cpu", "fp32"),
    ("engine.zero_stage=3 engine.offload_optimizer=cpu engine.offload_parameters=cpu", "fp32"),
]


class NoRoomError(Exception):
    """Stands for an allocator that has no more."""


def stop(*_):
    raise NoRoomError


def whole_step(engine, micro_batches):
    for micro_batch in micro_batches:
        engine.backward(engine.loss(micro_batch) / 8)


def no_last_backward(engine, micro_batches):
    whole_step(engine, micro_batches[:-1])
    engine.loss(micro_batches[-1])


def stopped_in_a_forward(engine, micro_batches):
    hook = layer(engine, 1).mlp.register_forward_pre_hook(stop)
    with pytest.raises(NoRoomError):
        whole_step(engine, micro_batches)
    hook.remove()


def stopped_in_a_backward(engine, micro_batches):
    whole_step(engine, micro_batches[:1])
    hook = layer(engine, 0).mlp.register_forward_hook(lambda _, __, out: out.register_hook(stop) and None)
    with pytest.raises(NoRoomError):
        whole_step(engine, micro_batches[1:])
    hook.remove()


UNDONE = (whole_step, no_last_backward, stopped_in_a_forward, stopped_in_a_backward)


def layer(engine, number):
    return next(module for name, module in engine.model.named_modules() if name.endswith(f"h.{number}"))


def losses_and_norms(folder, settings, dtype, undone):
    """Take a step for each of `UNDONE`, after one that came as far as that and was undone, or without."""
    common = ["method.name=lora", "batch.global_batch_size=8", "batch.micro_batch_size=3"]
    config, engine = build([*common, *settings.split()], folder, DTYPES[dtype], ProcessContext())
    other = ragged_split(config.task, num_samples=8, seed=9)
    shares = batching.cut(other.lengths, config.batch, 1)[0]
    found = []
    for seed, begin in enumerate(UNDONE):
        if undone:
            set_training(engine.model, True)
            engine.begin_step(len(shares))
            begin(engine, [batching.collate(other, rows, PADDING, engine.device) for rows in shares])
            engine.discard_gradients()
        outcome = take_steps(config, engine, ragged_split(config.task, seed=seed), 1)
        found.append((outcome.losses[0], outcome.norms[0]))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from deepspeed.accelerator import get_accelerator

    with pytest.MonkeyPatch.context() as patch:
        # This CPU's fp16 is slow but right; DeepSpeed asks for AVX512-FP16 and else refuses.
        patch.setattr(type(get_accelerator()), "is_fp16_supported", lambda self: True)
        with joined(ProcessContext()):
            yield save_tiny_model(tmp_path_factory.mktemp("model"), "gpt2")


@pytest.mark.parametrize(("settings", "dtype"), ENGINES)
def test_a_step_after_one_that_was_undone_is_the_step_without_it(settings, dtype, folder):
    expected = losses_and_norms(folder, settings, dtype, undone=False)
    assert losses_and_norms(folder, settings, dtype, undone=True) == expected


def test_an_update_that_stops_before_it_changes_a_weight_can_be_undone_with_its_loss_scale(folder, monkeypatch):
    def losses(*, undone):
        config, engine = build(["method.name=lora"], folder, torch.float16, ProcessContext())
        if undone:
            with monkeypatch.context() as patch:
                patch.setattr("torch.nn.utils.get_total_norm", stop)
                with pytest.raises(NoRoomError):
                    take_steps(config, engine, ragged_split(config.task, seed=9), 1)
            engine.discard_gradients()
        return take_steps(config, engine, ragged_split(config.task), 2).losses

    assert losses(undone=True) == losses(undone=False)


@pytest.mark.parametrize("settings", [[], ["engine.zero_stage=2"]])
def test_a_checkpoint_keeps_how_long_the_loss_scale_has_held(settings, folder):
    config, engine = build(["method.name=lora", *settings], folder, torch.float16, ProcessContext())
    take_steps(config, engine, ragged_split(config.task), 3)
    saved = engine.optimizer_state()
    assert saved["loss_scale/clean_steps"] == 3, "no gradient of three small steps overflows"
    _, plain = build(["method.name=lora"], folder, torch.float16, ProcessContext())
    plain.load_optimizer_state(saved)
    assert plain.optimizer_state()["loss_scale/clean_steps"] == 3
    assert plain.optimizer_state()["loss_scale/"] == saved["loss_scale/"]
