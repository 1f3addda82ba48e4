"""A table of tokens is not on the device: its rows come from the host, where nothing else has the table."""

import pytest
import torch
from safetensors.torch import load_file

from ftkit.models.streaming.stream import is_streamed, value_of
from ftkit.models.streaming.table import HostTable, left_out_table
from tests.helpers import VOCABULARY
from tests.models.streaming.conftest import engine_of

DISK = "engine.stream_layers=disk"


@pytest.fixture(scope="module")
def engine(deep):
    return engine_of(deep("llama"), DISK, dtype=torch.bfloat16)


def test_rows_are_those_of_the_file_in_the_type_that_computes(engine, deep):
    table, stored = engine.model.get_input_embeddings(), load_file(deep("llama") / "model.safetensors")
    wanted = stored["model.embed_tokens.weight"].to(torch.bfloat16)
    ids = torch.tensor([[5, 1, 5], [VOCABULARY - 1, 0, 2]])
    assert torch.equal(table(ids), wanted[ids])
    assert table(ids[:0]).shape == (0, 3, 64)
    assert value_of(table.weight).dtype == torch.bfloat16
    assert torch.equal(value_of(table.weight), wanted)
    assert torch.equal(HostTable(wanted).look_up(ids, table.weight), wanted[ids])


def test_a_token_that_the_table_does_not_have_is_refused_and_no_other_tensor_read(engine):
    for number in (-1, VOCABULARY):
        with pytest.raises(IndexError, match=f"{VOCABULARY} rows"):
            engine.model.get_input_embeddings()(torch.tensor([[number]]))


@pytest.mark.parametrize(
    ("family", "settings", "leaves"),
    [
        ("llama", (), True),
        ("bert", ("task=sequence-classification",), True),
        ("gpt2", (), False),  # the table is the head too
        ("llama", ("model.resize_embeddings=200",), False),  # new rows train
    ],
)
def test_a_table_leaves_where_it_is_frozen_and_nothing_but_a_table(family, settings, leaves, deep):
    model = engine_of(deep(family), DISK, *settings).model
    table = model.get_input_embeddings()
    assert (left_out_table(model) is table) == leaves
    assert is_streamed(getattr(table, "weight", torch.empty(0))) == leaves
