"""A plan of streamed layers against a real run: what lives, what comes, and what the host keeps."""

from dataclasses import replace

import pytest

from ftkit.config.tree import BatchConfig, RunConfig
from ftkit.data.batching import Shape
from ftkit.engine.resolve import resolve
from ftkit.machine.disk import CACHE_VARIABLE
from ftkit.models.activations import link, offload
from ftkit.models.build import build_model
from ftkit.models.foreign import has_values
from ftkit.models.methods.full import Full
from ftkit.models.methods.lora import Lora, Qlora
from ftkit.models.sources.source import load_config, resolve_source
from ftkit.models.streaming.stream import stream_of
from ftkit.plan.choices.changes import GROUP, HEAD, SIZE, STREAM, as_flags, changed, group_choices, steps_down
from ftkit.plan.choices.search import cures, options_at
from ftkit.plan.inputs.case import Case
from ftkit.plan.inputs.shapes import Sequences
from ftkit.plan.inputs.target import find_target
from ftkit.plan.needs.streamed import Streamed, coming_usually
from ftkit.plan.predict import Tapes, predict
from ftkit.plan.tracing.trace import trace
from ftkit.records.streamed import StreamPlan
from tests.models.streaming.conftest import deep_model
from tests.plan import models
from tests.plan.test_offloaded import Unseen

NUM_LAYERS, NUM_STEPS = 4, 2
SIZES = Shape(2, 32, 2, is_padded=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        family: deep_model(tmp_path_factory.mktemp(family) / "model", family, NUM_LAYERS)
        for family in ("gemma2", "llama", "mixtral")
    }


def run_config(name, method, place="disk", together=1, recompute="none", *, head=False):
    """Return what streams a model."""
    return RunConfig.model_validate(
        {
            "task": "causal-lm",
            "model": {"name": str(name), "precision": "fp32", "recompute": recompute},
            "method": method,
            "engine": {"name": "plain", "stream_layers": place, "stream_micro_batches": together, "stream_head": head},
        }
    )


@pytest.mark.parametrize(
    ("family", "method", "precision", "together", "recompute", "head", "num_first"),
    # The first micro-batch of all that go together runs through the four layers before the others do.
    [
        ("llama", Lora(), "fp32", 1, "none", False, 2),
        ("llama", Lora(), "fp32", 2, "cheap", True, 2 + NUM_LAYERS),
        ("llama", Lora(top_layers=2), "bf16", 1, "none", True, 1),
        ("llama", Qlora(), "bf16", 1, {"cheap": 0.5}, True, 2),
        ("mixtral", Lora(), "bf16", 1, "none", False, 2),
        ("gemma2", Lora(), "fp32", 1, "none", True, 2),
    ],
    ids=(
        "lora",
        "lora, together and cheap, with the head",
        "lora in the two top layers, with the head",
        "qlora, cheap in two layers, with the head",
        "experts that are stored one by one",
        "with the head that is the table too",
    ),
)
def test_a_plan_counts_what_lives_in_a_real_streamed_step_and_what_comes(
    folders, family, method, precision, together, recompute, head, num_first, tmp_path, monkeypatch
):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))  # where layers are packed
    target, dtype = find_target("cpu"), models.DTYPES[precision]
    run = resolve(run_config(folders[family], method, "disk", together, recompute, head=head), target.devices)
    source = resolve_source(run.config.model, run.config.task)
    architecture = load_config(source, None, 0)
    model = build_model(run.config, source, architecture, dtype)

    planned = trace(run.config, architecture, dtype, SIZES, device_type="cpu")
    real = models.measure_model(model, run.config, architecture, dtype, SIZES)
    assert planned.at_marks() == real.at_marks()
    assert planned.peak_bytes() == real.peak_bytes()

    case = Case.of(replace(run, precision=precision), target, architecture, Sequences.unseen(run.config))
    streamed = Streamed.of(case)
    stream = stream_of(model)
    # The very first forward does not find those of the lowest layers in the window that later ones find.
    times_head = stream.window.fillings[-1] if head else 0
    num_filled = sum(stream.window.fillings) - times_head - num_first
    step_bytes = streamed.plan(target, replace(SIZES, group_size=together)).step_bytes
    assert times_head == (NUM_STEPS * -(-SIZES.num_micro_batches // together) if head else 0)
    assert NUM_STEPS * step_bytes == num_filled * stream.layout.bytes_of(0) + times_head * stream.layout.head_bytes


def test_few_layers_stand_for_many_and_the_window_does_not_grow_with_their_number():
    target, plans = find_target("t4"), {}
    config = run_config("llama", Lora(), "ram")
    for number in (8, 16):
        plans[number] = predict(config, target, models.architecture("llama", number))
    whole = predict(config, target, models.architecture("llama", 8), exact=True)
    assert plans[8].peak_active_bytes == whole.peak_active_bytes
    assert plans[8].streamed.window_bytes == plans[16].streamed.window_bytes
    assert 2 * plans[8].streamed.num_bytes == plans[16].streamed.num_bytes


def test_micro_batches_that_go_together_let_layers_come_less_often_and_keep_the_inputs_of_each():
    target, tapes, plans = find_target("t4"), Tapes(), {}
    for number in (1, 2, "all"):
        config = run_config("llama", Lora(), "ram", number)
        config = config.model_copy(update={"batch": BatchConfig(global_batch_size=8, micro_batch_size=2)})
        plans[number] = predict(config, target, models.architecture("llama", 8), tapes=tapes)
    assert plans[1].streamed.step_bytes == 2 * plans[2].streamed.step_bytes == 4 * plans["all"].streamed.step_bytes
    inputs = 8 * 2 * config.data.max_length * models.architecture("llama", 8).hidden_size * 4
    assert plans[2].peak_active_bytes - plans[1].peak_active_bytes >= inputs
    assert plans["all"].peak_active_bytes - plans[2].peak_active_bytes >= 2 * inputs
    whole = predict(config, target, models.architecture("llama", 8), exact=True)
    assert plans["all"].peak_active_bytes == whole.peak_active_bytes


def offloading(config):
    return config.model_copy(update={"model": config.model.model_copy(update={"offload_activations": True})})


def test_a_plan_counts_the_inputs_that_wait_on_the_host_for_all_micro_batches_that_go_together(folders, monkeypatch):
    monkeypatch.setattr(offload, "SMALLEST_BYTES", 2**12)
    monkeypatch.setattr(offload, "link_for", lambda one: Unseen() if has_values(one) else link.PlannedLink())
    config, dtype = offloading(run_config(folders["llama"], Lora(), "disk", "all")), models.DTYPES["fp32"]
    source = resolve_source(config.model, config.task)
    architecture = load_config(source, None, 0)
    model = build_model(config, source, architecture, dtype)
    planned = trace(config, architecture, dtype, SIZES, device_type="cpu")
    real = models.measure_model(model, config, architecture, dtype, SIZES)
    assert planned.at_marks() == real.at_marks()
    assert planned.peak_bytes() == real.peak_bytes()
    assert planned.on_host == real.on_host
    assert sum(map(len, real.on_host.values())) == SIZES.num_micro_batches * (NUM_LAYERS - 1)


def test_a_device_has_the_inputs_of_two_layers_of_each_micro_batch_where_the_others_wait_on_the_host():
    target, architecture = find_target("t4"), models.architecture("llama", 8, width=256)
    here = run_config("llama", Lora(), "ram", "all")
    batch, data = BatchConfig(global_batch_size=8, micro_batch_size=2), here.data.model_copy(update={"max_length": 512})
    here = here.model_copy(update={"batch": batch, "data": data})
    few, all_of_them = (predict(offloading(here), target, architecture, exact=exact) for exact in (False, True))
    stays = predict(here, target, architecture)
    hidden = 2 * here.data.max_length * 256 * 4
    assert hidden >= offload.SMALLEST_BYTES
    assert few.peak_active_bytes == all_of_them.peak_active_bytes
    assert few.pinned_bytes == all_of_them.pinned_bytes == stays.pinned_bytes + 4 * 7 * hidden
    assert stays.peak_active_bytes - few.peak_active_bytes >= 4 * 4 * hidden


def test_the_host_keeps_all_layers_pinned_or_one_weight_on_its_way_and_a_step_waits_for_what_comes():
    architecture = models.architecture("llama", 8, width=1024)
    target, tapes = find_target("rtx3050-4gb"), Tapes()
    ram, disk = (
        predict(run_config("llama", Lora(), place), target, architecture, tapes=tapes) for place in ("ram", "disk")
    )
    largest = 1024 * 2048 * 4  # a matrix of the MLP in fp32
    table = architecture.vocab_size * 1024 * 4
    assert (ram.pinned_bytes, disk.pinned_bytes) == (ram.streamed.num_bytes + table, 0)
    assert ram.host_bytes - disk.host_bytes == ram.streamed.num_bytes + table - largest
    two = predict(run_config("llama", Lora(), "ram"), find_target("rtx3050-4gb", 2), architecture, tapes=tapes)
    assert two.pinned_bytes == ram.pinned_bytes, "one copy for both ranks"
    assert 2 * ram.host_bytes - two.host_bytes == ram.pinned_bytes
    assert ram.peak_active_bytes == disk.peak_active_bytes
    assert disk.streamed.step_seconds > ram.streamed.step_seconds
    assert disk.step_seconds >= disk.streamed.step_seconds


def test_a_layer_in_4_bits_is_on_its_way_from_a_disk_to_a_gpu_in_pinned_memory_as_torch_rounds_it_up():
    architecture = models.architecture("llama", 8, width=1024)
    config = run_config("llama", Qlora(), "disk")
    of_gpu, of_cpu = (predict(config, find_target(name), architecture) for name in ("rtx3090", "cpu"))
    layer = of_gpu.streamed.num_bytes // 8
    assert layer <= of_gpu.pinned_bytes < 2 * layer
    assert of_gpu.pinned_bytes.bit_count() == 1
    assert of_cpu.pinned_bytes == 0


def test_streaming_is_offered_to_a_run_that_does_not_fit_where_its_method_allows_it():
    architecture, target = models.architecture("llama", 24, width=2048), find_target(memory_budget="1.5GiB")
    batch, data = {"global_batch_size": 1, "micro_batch_size": 1}, {"max_length": 16}
    config = models.run_config("llama", Lora(targets=("q_proj",)), batch=batch, data=data)

    offered = {as_flags(one.changes): one.prediction for one in cures(config, options_at(config, target, architecture))}
    assert offered["--set engine.stream_layers=ram"].streamed is not None

    full = config.model_copy(update={"method": Full()})
    options = options_at(full, target, architecture)
    assert not options.price(full, [{STREAM: "ram"}], 1)


@pytest.mark.parametrize(("size", "numbers"), [(32, []), (16, ["all"]), (8, ["all"]), (4, [4, "all"])])
def test_a_few_micro_batches_or_all_may_go_together_where_there_are_several(size, numbers):
    target, config = find_target("t4"), run_config("llama", Lora(), "ram")
    data = Sequences.unseen(config)
    assert group_choices(config, target, data, {SIZE: size}) == [{}, *({GROUP: number} for number in numbers)]
    assert group_choices(run_config("llama", Lora(), "ram", 2), target, data, {SIZE: size}) == [{}], "it is named"


def test_a_head_that_comes_too_is_offered_to_a_streamed_run_that_does_not_fit():
    architecture = models.architecture("llama", 4, width=1024)
    architecture.vocab_size = 32000
    config = run_config("llama", Lora(targets=("q_proj",)), "ram")
    config = config.model_copy(update={"batch": BatchConfig(global_batch_size=1, micro_batch_size=1)})
    needed, less = (
        predict(one, find_target("t4"), architecture).peak_process_bytes
        for one in (config, changed(config, {HEAD: True}))
    )
    target = find_target("t4", memory_budget=str((needed + less) // 2))
    found = cures(config, options_at(config, target, architecture))
    assert "--set engine.stream_head=true" in [as_flags(one.changes) for one in found]


def test_micro_batches_that_go_together_are_taken_apart_before_all_else(folders):
    runs = [run_config(folders["llama"], Lora(), "ram", number) for number in ("all", 1)]
    together, apart = (steps_down(one, find_target("t4"), Sequences.unseen(one)) for one in runs)
    assert together == [{GROUP: 1}, *apart]


@pytest.mark.parametrize(("size", "usual", "times"), [(1, 1, 1), (1, 2.0, 2), (2, 2.0, 2), (2, 2.5, 4), (4, 1, 4)])
def test_in_a_usual_step_layers_come_once_for_each_of_its_own_groups(size, usual, times):
    worst = Shape(1, 32, num_micro_batches=4, group_size=size)
    coming = StreamPlan(place="disk", num_bytes=0, window_bytes=0, step_bytes=4000, step_seconds=8.0)
    found = coming_usually(coming, worst, usual)
    assert (found.step_bytes, found.step_seconds) == (1000 * times, 2.0 * times)
