"""The help of a command with the flags of a configuration."""

import pytest
from click.testing import CliRunner

from ftkit.cli import main


@pytest.mark.parametrize("command", ["train", "plan", "profile"])
def test_flags_are_listed_below_the_section_that_they_fill(command):
    lines = CliRunner().invoke(main, [command, "--help"]).output.splitlines()
    headings = [line for line in lines if line and not line.startswith(" ")][1:]
    assert headings[:3] == ["This command:", "What is trained, and where its settings come from:", "Model:"]
    place = next(number for number, line in enumerate(lines) if line.startswith("  --learning-rate"))
    assert [line for line in lines[:place] if line and not line.startswith(" ")][-1] == "Optimizer and schedule:"
