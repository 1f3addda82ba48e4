"""An answer is found again under the same question, and under no other."""

import pytest

from ftkit.config.files import load_config
from ftkit.plan.choices.kept_fits import KeptFits, question
from ftkit.plan.inputs.target import find_target
from ftkit.records.fits import Fit

FIT = Fit(model="gpt2", method="lora", longest=1024, length=512, recompute="layer", reason="needs more")


def asked(*settings, card="t4", budget=None):
    return question(load_config(settings=["model.name=gpt2", *settings]), find_target(card, memory_budget=budget))


def test_the_same_question_has_the_same_key_wherever_its_run_would_write():
    assert asked() == asked("output.folder=elsewhere")


@pytest.mark.parametrize(
    ("settings", "device"),
    [
        (["method.rank=16"], {}),
        (["model.name=gpt2-xl"], {}),
        ([], {"card": "l4"}),
        ([], {"budget": "8GiB"}),
        (["data.label_columns=[a,b,c]"], {}),
        (["engine.expandable_segments=true"], {}),
    ],
)
def test_another_run_and_another_device_have_another_key(settings, device):
    assert asked(*settings, **device) not in (None, asked())


def test_a_model_whose_shapes_may_change_under_its_name_has_none():
    assert asked("model.name=somebody/model") is None


def test_other_versions_and_another_planner_ask_anew(monkeypatch):
    before = asked()
    monkeypatch.setattr("ftkit.plan.choices.kept_fits.source_digest", lambda: "of a changed planner")
    changed = asked()
    monkeypatch.setattr("ftkit.plan.choices.kept_fits.versions", lambda: {"torch": "9"})
    assert len({before, changed, asked()}) == 3


def test_an_answer_is_found_until_its_file_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path))
    KeptFits().put("ab12", FIT)
    assert KeptFits().get("ab12") == FIT
    (file,) = tmp_path.rglob("*.json")
    file.write_text(file.read_text(encoding="utf-8").replace("512", "1024"), encoding="utf-8")
    assert KeptFits().get("ab12") is None
    assert not file.exists()


def test_a_disk_that_takes_nothing_keeps_nothing(monkeypatch):
    monkeypatch.setenv("FTKIT_CACHE", "/proc/nowhere")  # which root cannot write either
    KeptFits().put("ab12", FIT)
    assert KeptFits().get("ab12") is None
