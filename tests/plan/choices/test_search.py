"""What a search may offer, and what `ftkit plan` does with the winner."""

import dataclasses

import pytest
import yaml
from click.testing import CliRunner

from ftkit.cli import main
from ftkit.config.files import load_config
from ftkit.errors import ModelError
from ftkit.plan.choices import search as searching
from ftkit.plan.choices.candidates import Candidate, ranked
from ftkit.plan.choices.changes import takes_fewer_bits
from ftkit.plan.choices.search import confirmed, cures, options_at, search
from ftkit.plan.inputs.target import find_target
from ftkit.plan.predict import Tapes, predict
from ftkit.records.schema import Verdict

GPT2 = ("model.name=gpt2", "data.max_length=64")
PLAN = ("plan", "--model", "gpt2", "--gpu", "t4", "--max-length", "64")
TAPES = Tapes()
"""Shared by the tests of this file: what is traced of a model is the same in all of them."""


def config(*settings):
    return load_config(settings=[*GPT2, *settings])


def searched(run, target, limit):
    return search(run, options_at(run, target, tapes=TAPES), limit=limit)


def plan(*arguments):
    return CliRunner().invoke(main, [*PLAN, *map(str, arguments)])


def test_a_template_of_stage_3_with_offloaded_weights_is_kept():
    target = find_target("t4")
    found = searched(config("engine.ds_config=zero3_offload"), target, limit=3)
    assert found
    assert {one.config.engine.ds_config for one in found} == {"zero3_offload"}
    assert all("engine.zero_stage" not in one.changes for one in found)


def test_what_a_rule_advises_against_is_offered_to_whoever_asked_for_it_alone():
    target = find_target("t4")
    stages = {one.changes.get("engine.zero_stage", 0) for one in searched(config(), target, limit=40)}
    assert 2 not in stages, "ZeRO without offload on one device"
    assert len(searched(config("engine.zero_stage=2"), target, limit=1)) == 1


def test_several_devices_are_searched_under_the_launcher_and_without_zero_too():
    found = searched(config(), find_target("t4", 2), limit=60)
    stages = [one.changes.get("engine.zero_stage") for one in found]
    assert {None, 0, 1, 3} <= set(stages)
    assert 2 not in stages, "it is what the launcher brings by itself"


def test_several_devices_are_planned_as_the_readmes_launcher_runs_them():
    target = find_target("t4", 2)
    zero, plain = (predict(config(f"engine.zero_stage={stage}"), target, tapes=TAPES) for stage in (2, 0))
    assert predict(config(), target, tapes=TAPES) == zero != plain
    assert predict(config("engine.name=plain"), target, tapes=TAPES) == plain
    assert predict(config(), dataclasses.replace(target, launcher="torchrun"), tapes=TAPES) == plain


@pytest.mark.parametrize(
    ("more", "start", "engine"),
    [
        ([], "ftkit train", "plain"),
        (["--gpus", 2], "deepspeed --num_accelerators 2 --module ftkit train", "ZeRO-2, which the deepspeed launcher"),
        (["--gpus", 2, "--engine", "plain"], "torchrun --nproc-per-node 2 -m ftkit train", "plain (DDP)"),
        (["--gpus", 2, "--zero-stage", 3], "deepspeed --num_accelerators 2 --module ftkit train", "ZeRO-3\n"),
    ],
)
def test_what_is_written_is_settled_and_comes_with_the_command_that_trains_it(more, start, engine, tmp_path):
    file = tmp_path / "best.yaml"
    done = plan("--write", file, *more)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1] == f"{start} --config {file}"
    assert engine in done.output
    written = yaml.safe_load(file.read_text())
    assert written["model"]["name"] == "openai-community/gpt2", "training does not know the planner's own names"
    assert (written["model"]["precision"], written["optimizer"]["learning_rate"]) == ("fp16", 5e-4)
    assert written["batch"]["micro_batch_tokens"] == 4096


@pytest.mark.parametrize(
    ("place", "sentence"),
    [("nowhere/best.yaml", "there is no folder"), (".", "is a folder; name a file in it"), ("x" * 300, "cannot write")],
)
def test_a_file_that_cannot_be_written_is_one_sentence(place, sentence, tmp_path):
    done = plan("--write", tmp_path / place)
    assert done.exit_code == 2
    assert sentence in done.output
    assert "Traceback" not in done.output


def test_what_does_not_fit_is_not_written_and_no_command_is_printed(tmp_path):
    done = plan("--memory-budget", "500MiB", "--micro-batch-tokens", 4096, "--write", tmp_path / "best.yaml")
    assert done.exit_code == 8
    assert "is not written" in done.output
    assert "ftkit train" not in done.output
    assert not (tmp_path / "best.yaml").exists()


def test_a_winner_that_does_not_fit_when_every_layer_is_traced_is_not_one(monkeypatch):
    """As where layers differ more than the few that were traced: here the exact trace finds some too large."""

    def exact(run, *arguments, exact=False, **options):
        prediction = predict(run, *arguments, exact=exact, **options)
        is_larger = exact and run.batch.micro_batch_size > 8
        unfit = {"fits": False, "verdict": Verdict.DOES_NOT_FIT, "reason": "too large"}
        return prediction.model_copy(update=unfit) if is_larger else prediction

    monkeypatch.setattr(searching, "predict", exact)
    options = options_at(config(), find_target("t4"), tapes=TAPES)
    found = search(config(), options, limit=4)
    kept, checked = confirmed(found, options)
    assert checked is not None
    assert checked.fits
    assert kept == found[len(found) - len(kept) :] != found
    assert kept[0].config.batch.micro_batch_size <= 8
    assert confirmed(found[:1], options) == ([], None)


def test_what_a_model_does_not_go_with_is_not_offered(monkeypatch):
    def quantize(*_, **__):
        raise ModelError("no linear layer")

    monkeypatch.setattr("ftkit.models.bnb.quantize", quantize)
    run = config("method.name=lora")
    found = cures(run, options_at(run, find_target(memory_budget="900MiB")))

    assert all(one.changes.get("method.name") != "qlora" for one in found)
    with pytest.raises(ModelError, match="no linear layer"):
        searched(config("method.name=qlora"), find_target("t4"), limit=2)


def test_of_configurations_that_are_as_fast_the_simplest_comes_first():
    usual = predict(config(), find_target("t4"), tapes=TAPES)

    def candidate(seconds, **changes):
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        return Candidate(config(), usual.model_copy(update={"step_seconds": seconds}), dotted)

    simple = candidate(1.02, batch__micro_batch_size=1)
    packed = candidate(1.01, method__name="qlora")
    shared = candidate(1.0, engine__zero_stage=3, engine__offload_parameters="cpu")
    slow = candidate(1.04)

    assert ranked([slow, shared, packed, simple]) == [simple, packed, shared, slow]
    assert ranked([]) == []


def test_the_changes_that_would_make_it_fit_are_of_different_kinds_and_name_the_host_s_memory():
    done = plan("--memory-budget", "700MiB", "--micro-batch-tokens", 4096)
    offers = [line for line in done.output.splitlines() if line.startswith("  --")]
    kinds = [line.partition(":")[0].replace("--micro-batch-size ", "") for line in offers]
    assert offers
    assert all("of host memory" in line for line in offers)
    assert len({"".join(word for word in kind.split() if not word.isdigit()) for kind in kinds}) == len(offers)


def test_what_rounds_to_fewer_bits_is_offered_behind_what_leaves_the_mathematics_as_it_is():
    lora = config("method.name=lora", "batch.micro_batch_size=32")
    needed = predict(lora, find_target("t4"), tapes=TAPES).peak_process_bytes
    little = find_target("t4", memory_budget=str(needed - 64 * 2**20))
    found = cures(lora, options_at(lora, little, tapes=TAPES))
    rounding = [takes_fewer_bits(one.changes) for one in found]
    assert rounding == sorted(rounding)
    assert rounding.count(False) == 3, "there was room for no more"
    (packed,) = [one for one in found if "method.name" in one.changes]
    assert packed.fits
    assert packed.needed_bytes == predict(packed.config, find_target("t4"), tapes=TAPES).peak_process_bytes


def test_changes_that_the_model_does_not_go_with_are_refused_whatever_they_change():
    streamed = config(
        "task=causal-lm", "engine.stream_layers=disk", "engine.stream_head=true", "model.resize_embeddings=true"
    )
    options = options_at(streamed, find_target("t4"), tapes=TAPES)
    with pytest.raises(ModelError, match="new rows of the head train"):
        options.price(streamed, [{"method.rank": 4}], 1)
    priced, refused = options.price_each(streamed, [{"method.rank": 4}, {"data.max_length": 128}])
    assert not priced
    assert ["new rows of the head train" in one.reason for one in refused] == [True, True]
