"""One configuration, measured."""

import pytest
import torch

import ftkit
from ftkit.errors import ConfigError
from ftkit.machine.process import ProcessContext
from ftkit.profile.profiler import profile_run
from tests.helpers import VOCABULARY, save_tiny_model


def test_a_profile_of_sequences_longer_than_the_model_has_positions_is_refused_as_a_training_is(tmp_path):
    model = save_tiny_model(tmp_path / "model", "gpt2")
    config = ftkit.load_config(settings=[f"model.name={model}", "model.precision=fp32", "data.max_length=65"])
    with pytest.raises(ConfigError, match="65 tokens, and the model has 64 positions"):
        profile_run(config, ProcessContext(), tmp_path)


def test_a_profile_reads_all_of_the_table_as_texts_do(monkeypatch, tmp_path):
    model, looked_up = save_tiny_model(tmp_path / "model", "gpt2"), set()
    embedding = torch.nn.functional.embedding

    def noting(ids, table, *args, **settings):
        if len(table) == VOCABULARY:
            looked_up.update(ids.flatten().tolist())
        return embedding(ids, table, *args, **settings)

    monkeypatch.setattr(torch.nn.functional, "embedding", noting)
    settings = [f"model.name={model}", "model.precision=fp32", "data.max_length=16", "batch.global_batch_size=16"]
    profile_run(ftkit.load_config(settings=settings), ProcessContext(), tmp_path, num_timed=1)
    assert len(looked_up) > 0.5 * VOCABULARY
