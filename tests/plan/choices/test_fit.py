"""What `engine.fit` chooses at a budget, on a card whose rates the table has, so that no clock decides."""

import re
from dataclasses import replace

import pytest

from ftkit.config.engine import EngineConfig
from ftkit.config.recompute import Recompute
from ftkit.config.training import TrainingConfig
from ftkit.config.tree import BatchConfig
from ftkit.engine.resolve import resolve
from ftkit.errors import ConfigError, DoesNotFitError, ModelError
from ftkit.machine.memory import resident_bytes
from ftkit.machine.process import ProcessContext
from ftkit.models.methods.full import Full
from ftkit.models.methods.lora import Lora
from ftkit.plan import predict as predictor
from ftkit.plan import preflight
from ftkit.plan.choices.candidates import TIGHT
from ftkit.plan.choices.changes import GROUP, SIZE, halves
from ftkit.plan.choices.fit import fit
from ftkit.plan.choices.search import Options, cures, options_at
from ftkit.plan.inputs.shapes import Sequences
from ftkit.plan.inputs.target import find_target
from ftkit.plan.predict import Tapes, predict
from ftkit.plan.tracing.trace import trace
from ftkit.units import format_bytes
from tests.plan import models

LAYERS = 6
ARCHITECTURE = models.architecture("gpt2", LAYERS, 256)
SEQUENCES = Sequences(64, 128, are_equal=True)
ONE_CUT = BatchConfig(micro_batch_size=16)
TAPES = Tapes()
"""Shared by the tests of this file: a trace does not depend on the budget."""


def config(method=Lora(), **sections):  # noqa: B008  # frozen
    return models.run_config("gpt2", method, **({"engine": EngineConfig(fit=True)} | sections))


def target(memory_bytes):
    return replace(find_target("t4"), memory_bytes=int(memory_bytes))


def fitted(memory_bytes, **sections):
    run = config(**sections)
    return fit(run, options_at(run, target(memory_bytes), ARCHITECTURE, SEQUENCES, TAPES))


def needed(recompute, batch=ONE_CUT):
    run = config(batch=batch)
    run = run.model_copy(update={"model": run.model.model_copy(update={"recompute": recompute})})
    return predict(run, target(2**34), ARCHITECTURE, sequences=SEQUENCES, tapes=TAPES).peak_process_bytes


def test_with_room_for_all_nothing_recomputes_and_the_run_is_settled():
    found = fitted(2**34)
    assert found.run.config.model.recompute == Recompute()
    assert isinstance(found.run.config.batch.micro_batch_tokens, int)
    assert not found.run.config.engine.fit, "a resume takes what was chosen"
    assert found.lines[1].endswith("as fast as any without a budget")


def test_as_few_layers_recompute_as_make_a_named_cut_fit():
    none, cheap = needed(Recompute()), needed(Recompute(cheap=1.0))
    found = fitted((cheap + 0.5 * (none - cheap)) / TIGHT, batch=ONE_CUT)
    recompute = found.run.config.model.recompute
    number = recompute.levels(LAYERS).count("cheap")
    assert recompute.layer == 0
    assert 0 < number < LAYERS
    assert found.run.config.batch.micro_batch_size == 16, "what is named stays"
    assert found.prediction.peak_process_bytes <= TIGHT * found.prediction.budget_bytes
    assert needed(Recompute(cheap=(number - 1) / LAYERS)) > TIGHT * found.prediction.budget_bytes
    assert found.lines[0] == f"fits: micro-batches of 16 sequences, {number} of {LAYERS} layers recompute what is cheap"


def test_what_changes_the_mathematics_is_named_and_not_chosen():
    run = models.run_config("gpt2", Full(), "layer", batch=BatchConfig(micro_batch_size=1))
    least = predict(run, target(2**34), ARCHITECTURE, sequences=SEQUENCES).peak_process_bytes
    with pytest.raises(DoesNotFitError, match=r"what would, and changes it: --optimizer adamw_8bit \(") as raised:
        fitted(least - 2**22, method=Full())
    assert raised.value.exit_code == 8


def test_a_cure_lets_some_of_the_layers_recompute():
    none, cheap = needed(Recompute()), needed(Recompute(cheap=1.0))
    run = config(batch=ONE_CUT, engine=EngineConfig())
    little = target(1.01 * (cheap + 0.5 * (none - cheap)))
    found = cures(run, options_at(run, little, ARCHITECTURE, SEQUENCES, TAPES))
    shares = [one.config.model.recompute for one in found if "model.recompute" in one.changes]
    assert [0 < share.saving < 1 for share in shares] == [True]
    assert all(one.fits and not one.is_between for one in found)


def test_fit_without_a_plan_is_refused():
    run = config(training=TrainingConfig(plan_first=False))
    with pytest.raises(ConfigError, match=r"engine\.fit without a plan: .* leave out --no-plan, or --fit"):
        resolve(run, target(2**34).devices)


def test_a_training_takes_what_fits_its_budget_and_says_so_in_two_lines():
    notes: list[str] = []
    budget_mb = (resident_bytes() + 600_000_000) // 10**6  # a plan of this process begins with what the process holds
    run = config(engine=EngineConfig(fit=True, memory_budget=f"{budget_mb}MB"))
    chosen, prediction = preflight.plan_first(run, ProcessContext(), ARCHITECTURE, SEQUENCES, notes.append)
    assert prediction.peak_process_bytes <= TIGHT * budget_mb * 10**6
    assert chosen.batch.micro_batch_tokens <= 2048, "a larger cut is not quicker on a CPU"
    assert not chosen.engine.fit
    budget = format_bytes(budget_mb * 10**6)
    assert notes[0] == f"planning: the fastest that fits in {budget} ..."
    recomputing = r"no layer recomputes|\d of 6 layers recompute what is cheap"  # as this processor's rates have it
    assert re.fullmatch(rf"fits: micro-batches of [\d,]+ tokens, ({recomputing})", notes[1])
    assert re.fullmatch(rf".* of {re.escape(budget)} planned; .*", notes[2])


def test_frozen_layers_are_streamed_where_nothing_else_fits_and_not_where_something_as_quick_does():
    architecture, tapes = models.architecture("llama", 3, 2048), Tapes()
    batch = BatchConfig(global_batch_size=4, micro_batch_size=1)
    run = models.run_config("llama", Lora(), "layer", batch=batch, engine={"fit": True})
    least = predict(run, target(2**34), architecture, sequences=SEQUENCES, tapes=tapes).peak_process_bytes

    def options(memory_bytes, **host):
        return options_at(run, replace(target(memory_bytes), **host), architecture, SEQUENCES, tapes)

    streamed, resident = fit(run, options(0.97 * least)), fit(run, options(1.01 * least / TIGHT))
    assert streamed.run.config.engine.stream_layers == "ram"
    assert streamed.lines[0].endswith("recompute everything, frozen layers streamed from the host's memory")
    assert resident.run.config.engine.stream_layers == "none"
    # A host that cannot keep all layers leaves them on the disk, from which they come less often.
    host_bytes = streamed.prediction.host_bytes - streamed.prediction.streamed.num_bytes // 2
    found = fit(run, options(0.97 * least, ram_bytes=host_bytes))
    assert found.lines[0].endswith(
        "streamed from the disk, all micro-batches through each together, where dropout draws in another order"
    )
    assert found.prediction.streamed.step_bytes == streamed.prediction.streamed.step_bytes / 4


def test_streamed_layers_recompute_no_more_than_they_have_to_where_streaming_is_named():
    architecture, run = models.architecture("llama", 3, 512), models.run_config("llama", Lora(), "none", batch=ONE_CUT)
    run = run.model_copy(update={"engine": EngineConfig(fit=True, stream_layers="ram")})
    found = fit(run, options_at(run, target(2**34), architecture, SEQUENCES, Tapes()))
    assert found.run.config.model.recompute == Recompute(cheap=1.0)


def test_what_was_priced_stays_where_layers_cannot_recompute_more(monkeypatch):
    architecture, tapes = models.architecture("llama", 3, 1024), Tapes()
    batch = BatchConfig(global_batch_size=4, micro_batch_size=1)
    run = models.run_config("llama", Lora(), "none", batch=batch, engine={"fit": True})
    least = predict(run, target(2**34), architecture, sequences=SEQUENCES, tapes=tapes).peak_process_bytes
    price = Options.price

    def without_whole_layers(options, config, choices, limit):
        if any(one.get("model.recompute") == "layer" for one in choices):
            raise ModelError("these layers cannot recompute")
        return price(options, config, choices, limit)

    monkeypatch.setattr(Options, "price", without_whole_layers)
    found = fit(run, options_at(run, target(0.9 * least), architecture, SEQUENCES, tapes))
    assert found.run.config.engine.stream_layers == "ram"


def test_many_micro_batches_through_a_streamed_layer_together_are_told_by_few(monkeypatch):
    traced = []

    def counted(config, architecture, dtype, shape, *given, **more):
        traced.append(shape.num_micro_batches)
        return trace(config, architecture, dtype, shape, *given, **more)

    monkeypatch.setattr(predictor, "trace", counted)
    run = models.run_config("gpt2", Lora(), engine={"stream_layers": "ram"}, batch={"global_batch_size": 10})
    options = options_at(
        run, find_target("t4"), models.architecture("gpt2", 2), Sequences(64, 32, are_equal=True), None
    )
    cuts = [{SIZE: size, GROUP: "all"} for size in halves(5)]
    priced = options.price(run, cuts, len(cuts))
    assert traced == [5, 2], "and not the 10 of one sequence each"
    assert [one.prediction.num_micro_batches for one in priced] == [10, 5, 2]
    least = priced[0]
    assert least.is_between
    # Each micro-batch has a few small tensors of its own.
    assert least.prediction.peak_active_bytes == pytest.approx(
        options.confirm(least).prediction.peak_active_bytes, rel=0.05
    )
