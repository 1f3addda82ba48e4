"""Where a plan would run: cards, several of them, this machine's processor, and what other programs leave."""

import pytest

from ftkit.errors import ConfigError
from ftkit.plan.inputs.target import find_target


@pytest.mark.parametrize(("gpu", "gpus", "number"), [("2x3090", None, 2), ("2 x RTX 3090", 2, 2), ("3090", 3, 3)])
def test_several_cards_may_be_named_in_one_word(gpu, gpus, number):
    target = find_target(gpu, gpus)
    assert (target.name, target.num_devices) == ("RTX 3090", number)


def test_two_numbers_of_cards_that_differ_are_refused():
    with pytest.raises(ConfigError, match="--gpu names 2 cards and --gpus 3; say it once"):
        find_target("2x3090", 3)


@pytest.mark.parametrize(("gpu", "gpus", "named"), [("0xt4", None, "the 0 of --gpu"), ("t4", 0, "--gpus 0")])
def test_no_cards_are_refused_by_the_flag_that_says_so(gpu, gpus, named):
    with pytest.raises(ConfigError, match=f"{named} is not a number of devices; give 1 or more"):
        find_target(gpu, gpus)


def test_an_empty_name_is_not_a_card_that_nobody_named():
    with pytest.raises(ConfigError, match="unknown GPU ''"):
        find_target("")


def test_the_processor_of_this_machine_is_a_card_too():
    target = find_target("cpu", memory_budget="2GiB")
    assert (target.device_type, target.memory_bytes) == ("cpu", 2**31)


def test_what_other_programs_have_of_a_card_is_not_there():
    assert find_target("t4").memory_bytes - find_target("t4", memory_used="2GiB").memory_bytes == 2**31
    with pytest.raises(ConfigError, match=r"--memory-used 15GiB leaves nothing of the 14.56 GiB of T4; give less"):
        find_target("t4", memory_used="15GiB")


def test_an_unknown_card_is_told_where_the_known_ones_are_listed():
    with pytest.raises(ConfigError, match="ftkit plan --list"):
        find_target("help")
