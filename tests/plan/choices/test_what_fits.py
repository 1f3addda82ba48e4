"""The longest text that fits is one that fits, and a little longer one does not."""

import pytest

from ftkit.config.files import load_config
from ftkit.plan import predict as predictor
from ftkit.plan.choices.kept_fits import KeptFits
from ftkit.plan.choices.what_fits import what_fits
from ftkit.plan.inputs.shapes import Sequences
from ftkit.plan.inputs.target import find_target
from ftkit.plan.predict import Tapes, predict
from ftkit.plan.tracing.trace import trace
from ftkit.records.schema import Verdict


def verdict(target, fit, length):
    run = load_config(
        settings=[
            f"model.name={fit.model}", f"method.name={fit.method}", f"model.recompute={fit.recompute}",
            f"data.max_length={length}", "batch.micro_batch_size=1",
        ]
    )  # fmt: skip
    return predict(run, target, sequences=Sequences.unseen(run)).verdict


@pytest.mark.slow
def test_the_longest_text_fits_and_one_that_is_an_eighth_longer_does_not():
    target = find_target(memory_budget="1GiB")
    (fit,) = what_fits(load_config(), [target], ["smollm2-135m"], ["lora"])
    assert fit.length is not None
    assert 1024 < fit.length < fit.longest == 8192, "the case has a border"
    assert fit.recompute == "layer", "what needs least"
    assert verdict(target, fit, fit.length) is Verdict.FITS
    assert verdict(target, fit, fit.length * 9 // 8) is not Verdict.FITS


def test_a_short_model_with_room_keeps_all_and_one_whose_weights_are_too_large_says_so():
    small, large = what_fits(load_config(), [find_target("t4")], ["distilgpt2", "llama-2-13b"], ["full"])
    assert (small.length, small.recompute) == (1024, "none")
    assert small.tokens_per_second > 0
    assert large.length is None
    assert large.is_told
    assert "its weights alone are 23.94 GiB" in str(large.reason)


def test_what_cannot_be_told_comes_with_its_reason():
    found = list(
        what_fits(load_config(settings=["task=causal-lm"]), [find_target("t4")], ["bert-base", "nosuch"], ["lora"])
    )
    assert [fit.is_told for fit in found] == [False, False]
    assert "reads a text whole" in str(found[0].reason)
    assert "no model 'nosuch'" in str(found[1].reason)


@pytest.fixture
def traced(monkeypatch):
    """Return the runs whose steps are traced from here on."""
    runs = []

    def counted(*given, **more):
        runs.append(given[0])
        return trace(*given, **more)

    monkeypatch.setattr(predictor, "trace", counted)
    return runs


def test_a_border_takes_few_traces_and_a_text_that_is_an_eighth_longer_does_not_fit(traced):
    target = find_target("t4")
    (fit,) = what_fits(load_config(), [target], ["llama-3.2-1b"], ["lora"])
    assert fit.length is not None
    assert fit.length < fit.longest
    assert len(traced) <= 4, "all that the model reads, and few about the border"
    assert fit.length in [run.data.max_length for run in traced]
    assert verdict(target, fit, fit.length * 9 // 8) is not Verdict.FITS


def test_what_weights_that_train_keep_beside_them_rules_a_model_out_before_it_is_traced(traced):
    (fit,) = what_fits(load_config(), [find_target("t4")], ["qwen2.5-1.5b"], ["full"])
    assert "its weights, their masters and moments alone are 20.13 GiB, more than the 14.56" in str(fit.reason)
    assert not traced


def test_cards_of_one_kind_share_a_step_but_for_sums_that_are_cut_by_their_multiprocessors():
    """The T4 has 40 multiprocessors, the RTX 2080 Ti 68."""

    def peaks(model, method):
        settings = [f"model.name={model}", f"method.name={method}", "data.max_length=512", "model.precision=fp16"]
        config, tapes = load_config(settings=[*settings, "batch.micro_batch_size=16"]), Tapes()
        plans = [predict(config, find_target(card), tapes=tapes) for card in ("t4", "rtx2080ti")]
        return len(tapes.known), len({plan.peak_active_bytes for plan in plans})

    assert peaks("distilgpt2", "lora") == (1, 1)
    assert peaks("distilbert-base-uncased", "full") == (2, 2)


def test_cards_share_what_is_traced_find_what_each_finds_alone_and_are_asked_about_once(monkeypatch, tmp_path, traced):
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path))
    cards = [find_target("t4"), find_target("rtx2080ti")]
    both = list(what_fits(load_config(), cards, ["distilgpt2"], ["lora"], KeptFits()))
    assert [fit.device for fit in both] == [find_target("t4").name, find_target("rtx2080ti").name]
    together = len(traced)
    assert both == [fit for card in cards for fit in what_fits(load_config(), [card], ["distilgpt2"], ["lora"])]
    assert len(traced) == 3 * together, "each alone traces what both shared"
    assert list(what_fits(load_config(), cards, ["distilgpt2"], ["lora"], KeptFits())) == both
    assert len(traced) == 3 * together, "a second call finds the answers of the first"
