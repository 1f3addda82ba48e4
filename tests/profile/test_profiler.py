"""One configuration, measured."""

import pytest

import ftkit
from ftkit.errors import ConfigError
from ftkit.machine.process import ProcessContext
from ftkit.profile.profiler import profile_run
from tests.helpers import save_tiny_model


def test_a_profile_of_sequences_longer_than_the_model_has_positions_is_refused_as_a_training_is(tmp_path):
    model = save_tiny_model(tmp_path / "model", "gpt2")
    config = ftkit.load_config(settings=[f"model.name={model}", "model.precision=fp32", "data.max_length=65"])
    with pytest.raises(ConfigError, match="65 tokens, and the model has 64 positions"):
        profile_run(config, ProcessContext(), tmp_path)
