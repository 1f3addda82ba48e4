"""What a search offers of ZeRO, and what a rank has beside its tape."""

from dataclasses import replace

import pytest

from ftkit.config.engine import EngineConfig
from ftkit.config.rules import Force, broken_rules
from ftkit.config.tree import BatchConfig, ModelConfig, RunConfig
from ftkit.engine.resolve import resolve
from ftkit.machine.hardware import find_gpu
from ftkit.models.methods.full import Full
from ftkit.models.methods.lora import Lora
from ftkit.plan.choices.changes import changed, zero_choices
from ftkit.plan.inputs.target import Target, find_target
from ftkit.plan.predict import Tapes, predict
from ftkit.plan.zero.partition import WEIGHTS
from ftkit.plan.zero.share import share_out
from tests.plan import models
from tests.plan.zero.cases import Case


def offered(method, target):
    config = RunConfig(task="causal-lm", model=ModelConfig(name="llama-2-7b"), method=method)
    engines = [changed(config, change) for change in zero_choices()]
    return [
        (run.engine.zero_stage, run.engine.offload_optimizer, run.engine.offload_parameters)
        for run in engines
        if not list(broken_rules(resolve(run, target.devices).facts, Force.UNWISE))
    ]


def test_several_devices_are_offered_every_stage_the_lowest_first():
    assert [stage for stage, *_ in offered(Full(), find_target("t4", 4))] == [1, 2, 3, 2, 3]


def test_one_device_is_offered_only_what_goes_to_the_host():
    assert offered(Full(), find_target("t4")) == [(2, "cpu", "none"), (3, "cpu", "cpu")]
    assert offered(Lora(), find_target("t4")) == [(3, "cpu", "cpu")]


def test_a_cpu_is_not_offered_its_own_memory():
    assert offered(Full(), find_target()) == []


def test_offloaded_weights_come_twice_for_each_micro_batch():
    slow = replace(find_gpu("t4"), name="slow", link=1e6)  # so that nothing else takes as long
    engine = EngineConfig(zero_stage=3, offload_parameters="cpu")
    run = models.run_config("llama", Lora(), batch=BatchConfig(global_batch_size=4, micro_batch_size=1), engine=engine)
    found = predict(run, Target("slow", "cuda", slow, 2**34), models.architecture("llama"))
    weights = 2 * found.num_parameters  # in fp16
    assert found.step_seconds == pytest.approx(2 * 4 * weights / slow.host_rate, rel=0.01)


def test_gloo_gathers_the_largest_weight_into_copies_that_no_tape_sees(monkeypatch):
    tapes, ranks = Tapes(), Target("cpu", "cpu", None, 2**34, 2, launcher="deepspeed")
    third, second = (Case("llama", stage, "none", "lora", 0.0, precision="fp32") for stage in (3, 2))
    predict(third.config, ranks, third.architecture, tapes=tapes)
    ((tape, _),) = tapes.known.values()
    copied = [share_out(tape, resolve(one.config, ranks.devices)).copied_bytes for one in (third, second)]

    largest = max(birth.size for birth in tape.births if birth.role in WEIGHTS)
    assert copied == [2 * largest, 0], "each of gloo's two threads keeps what it took of its heap"
    monkeypatch.setattr("ftkit.plan.zero.share.LARGEST_IN_HEAP", largest - 1)
    larger = share_out(tape, resolve(third.config, ranks.devices)).copied_bytes
    assert larger == largest, "what is the system's own goes back at once"
