"""What the rulebook says to do can be typed."""

import re

import click
import pytest

from ftkit.cli import main
from ftkit.config.files import load_config
from ftkit.config.rules import RULES, Force


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.force is Force.REFUSED], ids=lambda rule: rule.what)
def test_the_remedy_of_a_rule_is_flags_that_there_are(rule):
    known = {flag for one in main.get_command(click.Context(main), "train").params for flag in one.opts}
    given = re.findall(r"--[a-z-]+", rule.remedy)
    assert given
    assert set(given) <= known
    for setting in re.findall(r"--set (\S+?=[^\s,;]+)", rule.remedy):
        load_config(settings=[setting, "method.name=lora"])
