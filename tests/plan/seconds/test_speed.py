"""How long a step takes: a chain of what the host asks for and a GPU computes, or both in turns on a CPU."""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch

from ftkit.config.tree import DataConfig, ModelConfig, RunConfig
from ftkit.machine import heap
from ftkit.machine.hardware import find_gpu
from ftkit.machine.heap import LARGEST_IN_HEAP
from ftkit.machine.process import has_bf16
from ftkit.models.methods.head import FeatureExtraction
from ftkit.models.methods.lora import Lora, Qlora
from ftkit.observe.operators import op_key
from ftkit.observe.tape import Birth, OpKey, Tape
from ftkit.plan.inputs.shapes import Sequences
from ftkit.plan.inputs.target import Target, find_target
from ftkit.plan.predict import predict
from ftkit.plan.seconds.hooks import HOOKS
from ftkit.plan.seconds.size import TRACED, Size
from ftkit.plan.seconds.speed import Device, cpu_device, gpu_device
from ftkit.plan.seconds.step_time import step_time
from ftkit.plan.seconds.timed import Timed
from ftkit.step.observer import Phase
from tests.plan.models import architecture, run_config

GPU = Device(fp32_flops=1e12, half_flops=1e13, bandwidth=1e11, host_seconds=1e-5, is_asynchronous=True)
SMALL: OpKey = ("add", 0, 1000, "bfloat16")
LARGE: OpKey = ("mm", 10**10, 1000, "bfloat16")


def seconds(device: Device, **counts: dict[OpKey, int]) -> float:
    tape = Tape(costs={(Phase(phase), 2, None): Counter(counter) for phase, counter in counts.items()})
    return step_time(tape, device, 1, 1).seconds


def test_many_small_operators_wait_for_the_host():
    assert seconds(GPU, **{Phase.FORWARD: {SMALL: 1000}}) == pytest.approx(1000 * 1e-5)


def test_the_host_hides_behind_large_operators():
    # A millisecond each on the device, a hundredth of it on the host; the small ones between them cost nothing more.
    assert seconds(GPU, **{Phase.FORWARD: {LARGE: 100, SMALL: 1000}}) == pytest.approx(100 * 1e-3, rel=1e-3)


def test_a_cpu_asks_and_computes_one_after_the_other():
    cpu = Device(1e12, 1e13, 1e11, 1e-5, is_asynchronous=False)
    assert seconds(cpu, **{Phase.FORWARD: {LARGE: 100}}) == pytest.approx(100 * (1e-3 + 1e-5))


def test_asking_costs_in_each_phase_what_it_was_seen_to_cost_there():
    cpu = Device(1e12, 1e13, 1e11, 1e-5, is_asynchronous=False, hosts={Phase.BACKWARD: 1e-6})
    assert seconds(cpu, **{Phase.FORWARD: {SMALL: 100}}) == pytest.approx(100 * 1e-5, rel=0.01)
    assert seconds(cpu, **{Phase.BACKWARD: {SMALL: 100}}) == pytest.approx(100 * 1e-6, rel=0.02)


def test_a_hook_takes_what_hooks_were_seen_to_take_whatever_an_operator_costs():
    cpu = Device(1e12, 1e13, 1e11, 1e-5, is_asynchronous=False, hook_seconds=4e-5, hosts={Phase.FORWARD: 9.0})
    assert seconds(cpu, **{Phase.FORWARD: {(HOOKS, 0, 0, ""): 100}}) == pytest.approx(100 * 4e-5)


def test_what_a_cpu_does_slower_than_it_copies_takes_as_long_as_it_was_timed():
    dropout: OpKey = ("bernoulli_.float", 0, 10**6, "bfloat16")
    cpu = Device(1e12, 1e13, 1e11, 0.0, is_asynchronous=False, rates={("bernoulli_", "bfloat16"): 1e8})
    assert seconds(cpu, **{Phase.FORWARD: {dropout: 3}}) == pytest.approx(3 * 1e-2)
    assert seconds(cpu, **{Phase.FORWARD: {(*dropout[:3], "float32"): 3}}) == pytest.approx(3 * 1e-5)


def test_a_random_number_costs_this_cpu_more_than_a_copy():
    cpu = cpu_device(1)
    # A generator takes some ns a number (three on a fast core); a copy of its bytes takes a tenth of that.
    assert cpu.rates["bernoulli_", "float32"] < cpu.bandwidth / 2
    assert all(0 < rate <= cpu.bandwidth for rate in cpu.rates.values())


def test_a_tensor_too_large_for_the_heap_costs_the_pages_that_the_system_gives_anew():
    def born(size, phase, step=2):
        return Birth(size, phase, step, 0, "", None)

    cpu = Device(1e12, 1e13, 1e11, 0.0, is_asynchronous=False, fresh_rate=1e9)
    large = LARGEST_IN_HEAP + 1
    births = [
        born(large, Phase.BACKWARD),
        born(large, Phase.OPTIMIZER),
        born(LARGEST_IN_HEAP, Phase.FORWARD),  # which another tensor has left in the heap
        born(10**12, Phase.LOAD, step=0),
    ]
    tape = Tape(births=births, costs={(Phase.BACKWARD, 2, None): Counter()})
    # Once in each of three micro-batches, and once in the update.
    assert step_time(tape, cpu, 3, 1).seconds == pytest.approx(4 * large / 1e9)
    assert step_time(tape, GPU, 3, 1).seconds == 0


def test_a_fresh_page_costs_this_cpu_something_whatever_room_its_heap_has():
    look = (
        "import resource, torch; from ftkit.plan.seconds import speed;"
        "blocks = [torch.ones(2**24, dtype=torch.uint8) for _ in range(11)]; del blocks[:-1];"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt; given, rate = speed.fresh_pages();"
        "print(given, rate, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    environment = os.environ | heap.variables({})
    printed = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True, env=environment)
    given, rate, num_pages = map(float, printed.stdout.split())
    assert 1e8 < rate < 1e12
    assert 0 < num_pages * given < 3 * 2 * LARGEST_IN_HEAP / rate  # what is given is taken back too
    assert num_pages * 2**21 >= 3 * LARGEST_IN_HEAP  # systems give pages of 2 MiB at most, three times here


def test_what_is_asked_for_while_the_device_computes_takes_no_time():
    layers = {
        (Phase.FORWARD, 2, 0): Counter({LARGE: 10}),
        (Phase.FORWARD, 2, 1): Counter({SMALL: 900}),
        (Phase.OPTIMIZER, 2, None): Counter({SMALL: 50}),
    }
    # The host asks for 9.1 ms of what is small, and for the update, in the 10 ms in which the device multiplies.
    assert step_time(Tape(costs=dict(layers)), GPU, 1, 1).seconds == pytest.approx(10e-3, rel=1e-2)


@pytest.mark.parametrize(("phase", "seconds"), [(Phase.FORWARD, 20e-3), (Phase.BACKWARD, 10e-3)])
def test_a_head_is_computed_behind_layers_that_wait_for_the_host_and_before_them_in_a_backward(phase, seconds):
    layers = {(phase, 2, None): Counter({LARGE: 10}), (phase, 2, 0): Counter({SMALL: 1000})}
    assert step_time(Tape(costs=dict(layers)), GPU, 1, 1).seconds == pytest.approx(seconds, rel=2e-2)


def test_a_device_that_lags_behind_its_host_is_waited_for_once():
    layers = {(Phase.FORWARD, 2, 0): Counter({SMALL: 1000}), (Phase.FORWARD, 2, None): Counter({LARGE: 10})}
    of = [step_time(Tape(costs=dict(layers)), GPU, number, 1).seconds for number in (0.5, 1, 2, 3, 40, 40.5)]
    # Ten ms to ask for the layers, and ten to compute the first head; the other heads are computed while it asks on.
    assert of == pytest.approx([10e-3, 20e-3, 30e-3, 40e-3, 410e-3, 415e-3], rel=2e-2)


def test_what_waits_on_the_host_is_away_before_the_backward_begins():
    layers = {(Phase.FORWARD, 2, 0): Counter({LARGE: 1}), (Phase.BACKWARD, 2, 0): Counter({LARGE: 40})}
    tape = Tape(costs=dict(layers), on_host={0: [10**8]}, marks=[(0, Phase.FORWARD), (0, Phase.OPTIMIZER)])
    assert step_time(tape, replace(GPU, host_rate=1e10), 1, 1).seconds == pytest.approx((10 + 40) * 1e-3, rel=1e-2)


def test_a_product_whose_rows_begin_anywhere_is_slow_on_a_gpu():
    left = torch.ones(8, 64, dtype=torch.bfloat16)
    rights = [left.new_ones(64, width) for width in (50256, 50257)]
    rows = [op_key("mm.default", (left, right), left @ right) for right in rights]
    assert [name for name, *_ in rows] == ["mm.default", "mm.unaligned"]
    device = replace(GPU, reach=replace(GPU.reach, unaligned=0.25), bandwidth=1e20)
    aligned, other = (device.seconds(name, 1e10, 1, "bfloat16") for name, *_ in rows)
    assert other == pytest.approx(4 * aligned)
    assert op_key("mm.default", (torch.empty(8, 64), torch.empty(64, 9)), torch.empty(8, 9))[0] == "mm.default"  # fp32


def test_the_host_of_a_card_for_servers_takes_longer_to_ask_than_that_of_a_card_for_a_desk():
    desk, server = (gpu_device(find_gpu(name), "fp16") for name in ("rtx3090", "t4"))
    assert server.host_seconds == pytest.approx(2 * desk.host_seconds)


def test_a_call_costs_what_it_was_seen_to_cost_beside_its_phase():
    device = replace(GPU, asked={"add": 3e-6, "mm": 9e-6, "mul": 5e-6}, hosts={Phase.FORWARD: 2e-6})
    assert device.asking("mm.default", Phase.FORWARD) == pytest.approx(11e-6)
    assert device.asking("other.default", Phase.FORWARD) == pytest.approx(7e-6)  # as the middle one


def test_a_smaller_micro_batch_computes_less_and_asks_as_often_and_the_update_stays():
    cpu = Device(1e12, 1e13, 1e11, 1e-5, is_asynchronous=False)
    tape = Tape(costs={(phase, 2, None): Counter({LARGE: 100}) for phase in (Phase.BACKWARD, Phase.OPTIMIZER)})
    asked, computed = 100 * 1e-5, 100 * 1e-3
    usual = step_time(tape, cpu, 3, 1, Size(0.25, 0.5, 0.5))
    assert usual.seconds == pytest.approx(3 * (asked + computed / 4) + asked + computed)


@pytest.mark.parametrize("name", ["bmm.default", "_softmax.default", "masked_fill_.Scalar"])
def test_attention_computes_by_its_scores_and_not_by_the_tokens(name):
    cpu = Device(1e12, 1e13, 1e11, 0.0, is_asynchronous=False)
    tape = Tape(costs={(Phase.FORWARD, 2, None): Counter({(name, 0, 10**9, "float32"): 1})})
    whole, usual = (step_time(tape, cpu, 1, 1, size).seconds for size in (TRACED, Size(0.25, 0.3, 0.5)))
    assert usual == pytest.approx(whole / 2)


def test_what_lays_texts_out_for_an_attention_computes_by_their_padded_length():
    cpu = Device(1e12, 1e13, 1e11, 0.0, is_asynchronous=False)
    tape = Tape(costs={(Phase.FORWARD, 2, None): Counter({("clone.default", 0, 10**9, "float32"): 1})})
    whole, usual = (step_time(tape, cpu, 1, 1, size).seconds for size in (TRACED, Size(0.25, 0.8, 0.5)))
    assert usual == pytest.approx(0.8 * whole)


def test_a_smaller_micro_batch_pays_for_each_call_all_the_same():
    # A millisecond a call, and as much again for the first thousand bytes.
    timed = {("add", "bfloat16"): [Timed(0, 1000, 2e-3), Timed(0, 10_000, 11e-3)]}
    cpu = Device(1e12, 1e13, 1e11, 0.0, is_asynchronous=False, timed=timed)
    tape = Tape(costs={(Phase.FORWARD, 2, None): Counter({("add.Tensor", 0, 10_000, "bfloat16"): 1})})
    assert step_time(tape, cpu, 1, 1, Size(0.5, 0.5, 0.5)).seconds == pytest.approx(6e-3, rel=1e-3)


def test_a_list_of_parameters_is_one_kernel():
    assert seconds(GPU, **{Phase.OPTIMIZER: {("_fused_foreach_add", 0, 1000, "float32"): 1000}}) == pytest.approx(1e-5)


def test_four_bits_compute_as_much_as_sixteen_and_take_longer():
    run = RunConfig(task="causal-lm", model=ModelConfig(name="tinyllama-1.1b"), data=DataConfig(max_length=256))
    plain, unpacking = (
        predict(run.model_copy(update={"method": one}), find_target("rtx3090")) for one in (Lora(), Qlora())
    )

    # The same products; a 4-bit weight is unpacked for each of them.
    plain_flops = plain.model_flops_utilization * plain.step_seconds
    assert unpacking.model_flops_utilization * unpacking.step_seconds == pytest.approx(plain_flops, rel=0.01)
    assert unpacking.step_seconds > plain.step_seconds


@pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="oneDNN compiles for processors that multiply bf16")
def test_a_product_of_a_new_shape_costs_this_cpu_something():
    assert 1e-5 < cpu_device(1).compile_seconds < 0.1


def test_products_of_new_shapes_are_compiled_on_a_cpu_and_a_run_of_ragged_texts_pays_for_it(monkeypatch):
    config = run_config("bert", Lora(), batch={"global_batch_size": 8})
    config = config.model_copy(update={"model": config.model.model_copy(update={"precision": "bf16"})})
    lengths = tuple(range(8, 72))
    ragged = Sequences(64, 71, are_equal=False, lengths=lengths)
    quick = replace(cpu_device(1), compile_seconds=0.0)

    def planned(compile_seconds, run=config):
        device = replace(quick, compile_seconds=compile_seconds)
        monkeypatch.setattr(Target, "device", lambda *_: device)
        return predict(run, find_target("cpu"), architecture("bert"), sequences=ragged)

    usual, dear, twice = map(planned, (0.0, 1.0, 2.0))
    slower = [one.total_seconds - usual.total_seconds for one in (dear, twice)]
    assert slower[0] > 10  # kernels: some products, in a shape or more
    assert slower[1] == pytest.approx(2 * slower[0])
    # So do the forwards of a validation and of a trunk; without padding a good part of the shapes come again.
    a_micro_batch = [71 * 8 / one.evaluation_tokens_per_second for one in (usual, dear)]
    assert a_micro_batch[1] - a_micro_batch[0] > 0.5  # products of a forward
    frozen = config.model_copy(update={"method": FeatureExtraction()})
    assert planned(1.0, frozen).trunk.seconds_per_step > planned(0.0, frozen).trunk.seconds_per_step + 0.5
