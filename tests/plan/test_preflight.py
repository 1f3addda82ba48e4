"""What is refused before training, and what happens where the planner itself fails."""

import os
import resource
import signal
from pathlib import Path

import pytest
import transformers

from ftkit.config.output import OutputConfig
from ftkit.config.training import TrainingConfig
from ftkit.config.tree import BatchConfig
from ftkit.errors import ConfigError, DoesNotFitError, PlannerError
from ftkit.machine.memory import peak_resident_bytes
from ftkit.machine.process import ProcessContext
from ftkit.models.methods.lora import Lora
from ftkit.plan import preflight
from ftkit.plan.inputs.shapes import Sequences
from ftkit.plan.inputs.target import find_target
from ftkit.plan.predicted import FormulaPrediction
from ftkit.plan.seconds.speed import FROM_STEPS, MEASURED_NOW
from ftkit.units import format_bytes
from tests.plan import models

SEQUENCES = Sequences(8, 32, are_equal=True)


def plan(architecture=None, note=print, **sections):
    config = models.run_config("gpt2", Lora(), **sections)
    return preflight.plan_first(config, ProcessContext(), architecture or models.architecture("gpt2"), SEQUENCES, note)


@pytest.fixture
def broken(monkeypatch):
    def predict(*_, **__):
        return {}["a key that was there yesterday"]

    monkeypatch.setattr("ftkit.plan.choices.search.predict", predict)


@pytest.mark.usefixtures("broken")
def test_a_fault_of_the_planner_ends_the_run_with_the_way_round_and_a_traceback_in_a_file():
    with pytest.raises(PlannerError, match=r"KeyError.* this is a mistake of ftkit's.*: --no-plan$") as raised:
        plan()

    said = Path(str(raised.value).partition("ftkit's, and ")[2].partition(" has the traceback")[0])
    assert "a key that was there yesterday" in said.read_text()
    assert "Traceback" in said.read_text()
    assert raised.value.exit_code == 70


@pytest.fixture
def copied(monkeypatch):
    monkeypatch.setattr("threading.active_count", lambda: 1)  # tests that run beside each other have a thread for it


@pytest.mark.usefixtures("copied")
def test_a_copy_of_the_process_plans_as_the_process_itself_would(monkeypatch):
    notes: list[str] = []
    config, prediction = plan(note=notes.append)
    monkeypatch.setattr(preflight, "can_be_copied", lambda _: False)
    own: list[str] = []
    same, here = plan(note=own.append)

    assert config == same
    assert prediction.peak_breakdown == here.peak_breakdown
    assert len(notes) == len(own) > 0


@pytest.mark.parametrize(("worth", "source"), [(0.0, FROM_STEPS), (1e9, MEASURED_NOW)])
def test_a_long_run_on_a_processor_that_is_not_calibrated_is_planned_by_real_steps(
    worth, source, monkeypatch, tmp_path
):
    monkeypatch.setattr(preflight, "_WORTH_A_LOOK", worth)
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path))  # what one run has seen is kept for the next one
    assert plan()[1].speed_source.startswith(source)


@pytest.mark.usefixtures("broken", "copied")
def test_a_fault_in_a_copy_is_told_here_and_its_traceback_is_kept(tmp_path):
    with pytest.raises(PlannerError, match=str(tmp_path / preflight.FAULT)):
        plan(output=OutputConfig(folder=str(tmp_path)))

    assert "a key that was there yesterday" in (tmp_path / preflight.FAULT).read_text()


@pytest.mark.usefixtures("copied")
def test_a_copy_that_is_lost_names_the_way_round(monkeypatch):
    monkeypatch.setattr(preflight, "options_at", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(PlannerError, match=r"ended with -9.* --no-plan$"):
        plan()


@pytest.mark.usefixtures("broken")
def test_the_traceback_goes_into_the_result_folder_where_there_is_one(tmp_path):
    with pytest.raises(PlannerError, match=str(tmp_path / preflight.FAULT)):
        plan(output=OutputConfig(folder=str(tmp_path)))

    assert (tmp_path / preflight.FAULT).is_file()


@pytest.mark.usefixtures("broken")
def test_the_way_round_names_a_cut_where_the_plan_was_to_choose_it():
    with pytest.raises(PlannerError, match=r"--no-plan --set batch\.micro_batch_tokens=512$"):
        plan(batch=BatchConfig(micro_batch_tokens="auto"), training=TrainingConfig(plan_first=False))


@pytest.mark.usefixtures("broken")
def test_without_a_plan_nothing_can_fail_in_it():
    assert plan(training=TrainingConfig(plan_first=False))[1] is None


@pytest.fixture
def reads_back(monkeypatch):
    forward = transformers.models.gpt2.modeling_gpt2.GPT2MLP.forward
    monkeypatch.setattr(
        transformers.models.gpt2.modeling_gpt2.GPT2MLP,
        "forward",
        lambda self, hidden: forward(self, hidden) if hidden.sum().item() else hidden,
    )


@pytest.mark.usefixtures("reads_back")
def test_a_model_that_cannot_be_followed_trains_with_a_formulas_word_or_with_a_warning():
    notes: list[str] = []
    assert isinstance(plan(note=notes.append)[1], FormulaPrediction)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ftkit.plan.needs.fallback.missing_size", lambda _: "vocab_size")
        config, prediction = plan(note=notes.append, batch=BatchConfig(micro_batch_tokens="auto"))

    assert prediction is None
    assert config.batch.micro_batch_tokens == Lora.cpu_micro_batch_tokens
    assert notes[-1].startswith("warning: no plan for this run, since GPT2ForSequenceClassification reads values back")
    assert notes[-1].endswith("no formula stands in: it has no vocab_size")


def test_the_usual_cut_becomes_smaller_where_it_does_not_fit_and_one_that_was_named_is_refused(monkeypatch):
    monkeypatch.setattr(preflight, "_WORTH_A_LOOK", 1e9)  # of which this process would keep some memory
    architecture, sequences = models.architecture("gpt2", 6, 256), Sequences(64, 128, are_equal=True)

    def planned(cut, budget=None, *, is_named=True, note=print):
        config = models.run_config("gpt2", Lora(), batch={"micro_batch_tokens": cut}, engine={"memory_budget": budget})
        given = ProcessContext(), architecture, sequences, note
        return preflight.plan_first(config, *given, is_cut_named=is_named)

    usual, least = (planned(cut)[1].peak_process_bytes for cut in (512, 128))
    notes: list[str] = []
    budget = f"{(usual + least) // 2 // 10**6}MB"
    config, prediction = planned(512, budget, is_named=False, note=notes.append)

    assert config.batch.micro_batch_tokens < 512
    assert prediction.fits
    assert notes[0] == f"micro-batches of {config.batch.token_limit} tokens, since the usual 512 do not fit"
    with pytest.raises(DoesNotFitError, match="micro-batch"):
        planned(512, budget)


def test_sequences_longer_than_the_table_of_positions_are_refused_with_the_most_that_it_takes():
    architecture = models.architecture("gpt2")
    architecture.n_positions = 16
    with pytest.raises(ConfigError, match="32 tokens, and the model has 16 positions; try --max-length 16"):
        plan(architecture)


@pytest.fixture
def limited():
    """One GiB of address space beside what the process has, of a machine that has far more."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("limited")
def test_the_plan_goes_by_what_the_process_can_have_now_and_not_by_what_the_machine_has():
    notes: list[str] = []
    prediction = plan(note=notes.append)[1]
    assert prediction is not None
    assert prediction.budget_bytes <= peak_resident_bytes() + 2**30
    assert prediction.budget_bytes < find_target(num_devices=1).memory_bytes
    assert f"of the {format_bytes(prediction.budget_bytes)} that it can have now" in notes[0]
