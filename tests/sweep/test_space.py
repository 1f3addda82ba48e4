"""A space of settings is read from YAML or made of what usually matters, and gives each trial a configuration."""

from typing import Any

import pytest

from ftkit.config.files import load_config
from ftkit.errors import ConfigError
from ftkit.sweep.space import read_space, usual_space


class First:
    """Chooses the first value, or the middle of a range, and remembers what it was asked for."""

    def __init__(self, **chosen):
        self.chosen, self.asked = chosen, []

    def suggest_categorical(self, name, choices):
        self.asked.append(name)
        return self.chosen.get(name.rpartition(".")[2], choices[0])

    def suggest_float(self, name, low, high, *, log=False):
        self.asked.append(name)
        return (low * high) ** 0.5 if log else (low + high) / 2

    def suggest_int(self, name, low, high, *, log=False):
        self.asked.append(name)
        return low


def test_the_usual_space_holds_the_configuration_that_was_given():
    base = load_config(settings=["method.name=lora", "method.rank=16", "training.epochs=2"])
    space = usual_space(base, ["lora"])
    first = space.first()
    assert first["method.rank"] == "16"
    assert first["training.epochs"] == "2"
    assert first["optimizer.learning_rate"] == 5e-4
    chosen: Any = space.config(space.choose(First()))
    assert chosen.method.rank == 4


def test_a_methods_own_settings_are_chosen_for_the_methods_that_have_them():
    base = load_config(settings=["method.name=lora"])
    space = usual_space(base, ["full", "lora"])
    full, lora = First(), First(name="lora")
    assert space.config(space.choose(full)).method.name == "full"
    assert "method.rank" not in full.asked
    chosen: Any = space.config(space.choose(lora))
    assert chosen.method.rank == 4


def test_a_space_of_yaml_has_lists_and_ranges():
    tree = {
        "optimizer.learning_rate": {"low": "1e-5", "high": 1e-3, "log": True},
        "method.targets": [["attention"], ["mlp"]],
    }
    space = read_space(load_config(), tree | {"method.name": ["lora"], "method.rank": {"low": 2, "high": 8}})
    chosen: Any = space.config(space.choose(First()))
    assert chosen.optimizer.learning_rate == pytest.approx(1e-4)
    assert chosen.method.targets == ("attention",)
    assert chosen.method.rank == 2


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ([], "a space is keys with lists of values"),
        ({"method.rank": 8}, "method.rank must be a list of values, or low and high"),
        ({"method.rank": {"low": 4, "high": 32, "step": 4}}, "method.rank must be a list of values, or low and high"),
        ({"method.rank": {"low": 8, "high": 8}}, "goes from 8 to 8"),
        ({"optimizer.learning_rate": {"low": 0, "high": 1, "log": True}}, "above 0 for log"),
        ({"optimizer.learning_rate": {"low": "tiny", "high": 1}}, "'tiny', which is not a number"),
        ({"optimizer.learning_rat": [1e-3]}, "optimizer.learning_rat"),
        ({"method.name": ["lore"], "method.rank": [4]}, "unknown method 'lore'"),
        ({"method.name": ["full"], "method.rank": [4]}, "none of the methods full has method.rank"),
        ({"method.rank": [0]}, "method.rank"),
    ],
)
def test_what_is_not_a_space_is_refused_by_its_key(tree, words):
    with pytest.raises(ConfigError) as raised:
        read_space(load_config(settings=["method.name=lora"]), tree)
    assert words in str(raised.value)
