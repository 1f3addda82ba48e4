"""What `ftkit tune` shows while it searches."""

from ftkit.cli.tune.command import _Lines
from ftkit.report.pages.tuned import Tried


def test_a_trial_is_shown_with_its_settings_and_says_which_name_is_which(capsys):
    settings = {"method.name": "lora", "model.name": "demo", "optimizer.learning_rate": "0.002"}
    show = _Lines("loss")
    show(Tried(3, settings, "running"))
    show(Tried(3, settings, "stopped", value=0.6931, seconds=41.0, reason="worse than others at validation 1"))
    first, second = capsys.readouterr().out.splitlines()
    assert first == "  3  method=lora model=demo learning_rate=0.002"
    assert second.strip() == "stopped: Loss 0.6931, 41.0 s (worse than others at validation 1)"
