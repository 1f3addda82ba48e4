"""Plans of runs whose layers keep on the host what their backward reads."""

from dataclasses import replace

import pytest
import torch

from ftkit.config.engine import EngineConfig
from ftkit.config.tree import BatchConfig
from ftkit.engine.resolve import Devices, resolve
from ftkit.errors import DeviceError
from ftkit.machine.hardware import find_gpu
from ftkit.machine.process import ProcessContext
from ftkit.models.activations import link, offload
from ftkit.models.foreign import has_values
from ftkit.models.methods.full import Full
from ftkit.models.methods.lora import Lora, Qlora
from ftkit.plan.choices.candidates import TIGHT
from ftkit.plan.choices.changes import OFFLOAD, as_flags, grid, steps_down
from ftkit.plan.choices.fit import fit
from ftkit.plan.choices.search import options_at
from ftkit.plan.inputs.shapes import Sequences
from ftkit.plan.inputs.target import find_target
from ftkit.plan.predict import Tapes, predict
from ftkit.plan.tracing.trace import trace
from tests.plan import models

SEQUENCES = Sequences(64, 512, are_equal=True)
BATCH = BatchConfig(global_batch_size=32, micro_batch_size=16)
DEEP = models.architecture("llama", 8, width=256)
TAPES = Tapes()


class Unseen(link.BlockingLink):
    """Copies to memory that is not torch's, as little seen by a recorder as that of a host beside a GPU."""

    def leave(self, storage):
        return link._bytes_of(storage).numpy().copy(), lambda: None

    def come(self, host, device):
        return super().come(torch.from_numpy(host), device)


def run_config(method=Lora(), recompute="none", *, offloads=True, family="llama", **sections):  # noqa: B008  # frozen
    config = models.run_config(family, method, recompute, **sections)
    model = config.model.model_copy(update={"offload_activations": offloads})
    return config.model_copy(update={"model": model})


def plan(recompute="none", *, offloads=True, exact=False):
    run = run_config(recompute=recompute, offloads=offloads, batch=BATCH)
    return predict(run, find_target("t4"), DEEP, sequences=SEQUENCES, exact=exact, tapes=TAPES)


@pytest.mark.parametrize(
    ("family", "method", "recompute"),
    [
        ("llama", Qlora(), {"cheap": 0.25, "layer": 0.5}),
        ("gpt2", Full(), "none"),
        ("bert", Lora(top_layers=2), "layer"),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_a_plan_counts_the_bytes_of_a_real_step_on_the_device_and_on_the_host(family, method, recompute, monkeypatch):
    monkeypatch.setattr(offload, "SMALLEST_BYTES", 2**12)
    monkeypatch.setattr(offload, "link_for", lambda one: Unseen() if has_values(one) else link.PlannedLink())
    config, architecture = run_config(method, recompute, family=family), models.architecture(family)
    sizes = models.shape(family)

    planned = trace(config, architecture, torch.float32, sizes, device_type="cpu")
    real = models.measure(config, architecture, torch.float32, sizes)

    assert planned.at_marks() == real.at_marks()
    assert planned.peak_bytes() == real.peak_bytes()
    assert planned.on_host == real.on_host
    assert sum(map(len, real.on_host.values())) > 0


@pytest.mark.parametrize("recompute", ["cheap", "layer"])
def test_few_layers_stand_for_many(recompute):
    few, all_of_them = plan(recompute), plan(recompute, exact=True)
    assert few.basis == "traced"
    assert few.peak_active_bytes == all_of_them.peak_active_bytes
    assert few.pinned_bytes == all_of_them.pinned_bytes


def test_a_device_has_what_two_layers_keep_and_the_host_the_rest_pinned_in_powers_of_two():
    here, away = plan("layer", offloads=False), plan("layer")
    hidden = 16 * 512 * 256 * 2  # of a micro-batch, in fp16: a power of two
    assert here.pinned_bytes == 0
    assert away.pinned_bytes == 7 * hidden, "all but the last layer"
    assert away.host_bytes == here.host_bytes + away.pinned_bytes
    # At the peak, which is in the backward of the last layer, there are its own input and the one that comes; and the
    # first layer's, a leaf that autograd itself holds for the gradient which PEFT lets it have.
    assert here.peak_active_bytes - away.peak_active_bytes == 5 * hidden
    assert link.pinned_size(hidden) == hidden
    assert link.pinned_size(hidden + 1) == 2 * hidden


def test_a_step_takes_as_long_as_its_copies_where_they_take_longer():
    run = run_config(batch=BATCH)
    target = find_target("t4")
    slow = replace(target, gpu=replace(find_gpu("t4"), link=1e9))
    kept = predict(run, target, DEEP, sequences=SEQUENCES, tapes=TAPES)
    waiting = predict(run, slow, DEEP, sequences=SEQUENCES, tapes=TAPES)
    there_and_back = 2 * run.batch.global_batch_size // 16
    assert waiting.step_seconds > kept.step_seconds
    # What is pinned is at most twice what is copied.
    assert waiting.step_seconds > there_and_back * kept.pinned_bytes / 2 / 0.75e9


def test_it_is_offered_to_a_run_that_does_not_fit_and_chosen_where_the_link_is_quick():
    card = find_target("t4")
    quick = replace(card, gpu=replace(find_gpu("t4"), link=1e12))  # so that nothing waits for a copy
    away = predict(run_config(batch=BATCH), quick, DEEP, sequences=SEQUENCES, tapes=TAPES)
    budget = int(1.01 * away.peak_process_bytes / TIGHT)
    assert budget < plan("cheap", offloads=False).peak_process_bytes, "recomputing what is cheap does not suffice"
    target = replace(quick, memory_bytes=budget)

    run = run_config(offloads=False, batch=BATCH, engine=EngineConfig(fit=True))
    found = fit(run, options_at(run, target, DEEP, SEQUENCES, TAPES))
    assert found.run.config.model.offload_activations
    assert found.lines[0] == "fits: micro-batches of 16 sequences, no layer recomputes, activations wait on the host"

    priced = options_at(run, target, DEEP, SEQUENCES, TAPES).price(run, [{OFFLOAD: True}], 1)
    assert [(as_flags(one.changes), one.fits) for one in priced] == [("--set model.offload_activations=true", True)]


def test_on_a_cpu_it_is_refused_and_neither_offered_nor_chosen():
    with pytest.raises(
        DeviceError, match=r"activations offloaded on a CPU: .*; give --set model\.offload_activations=false"
    ):
        resolve(run_config(), Devices.of(ProcessContext()))
    for target in (find_target(memory_budget="1GiB"), find_target("t4")):
        run = run_config(offloads=False, batch=BATCH)
        offered = [one for changes in (grid, steps_down) for one in changes(run, target, SEQUENCES)]
        assert any(OFFLOAD in one for one in offered) == (target.device_type == "cuda")


def test_what_comes_back_shares_the_link_with_the_layers_that_come():
    card = replace(find_gpu("t4"), link=1e8)  # slower than all else
    target, streams = replace(find_target("t4"), gpu=card), EngineConfig(stream_layers="ram")
    batch = BatchConfig(global_batch_size=8, micro_batch_size=4)
    apart, together = (
        predict(run_config(offloads=offloads, batch=batch, engine=streams), target, DEEP, sequences=SEQUENCES)
        for offloads in (False, True)
    )
    back = 2 * (together.pinned_bytes - apart.pinned_bytes) / card.host_rate  # of two micro-batches
    assert back > 0
    assert apart.step_seconds == apart.streamed.step_seconds
    assert together.step_seconds == pytest.approx(together.streamed.step_seconds + back)


def test_what_deepspeed_offloads_goes_over_the_link_of_the_card():
    batch = BatchConfig(global_batch_size=4, micro_batch_size=4)
    run = models.run_config("llama", Full(), batch=batch)
    engine = EngineConfig(name="deepspeed", zero_stage=2, offload_optimizer="cpu")
    run, quick, plans = run.model_copy(update={"engine": engine}), find_gpu("rtx3090"), []
    for rate in (quick.link, quick.link / 100):
        target = replace(find_target("rtx3090"), gpu=replace(quick, link=rate))
        plans.append(predict(run, target, DEEP, sequences=SEQUENCES, tapes=TAPES))
    fast, slow = plans
    moved = 4 * fast.num_trainable_parameters
    assert slow.step_seconds - fast.step_seconds == pytest.approx(2 * moved * 99 / quick.host_rate)
