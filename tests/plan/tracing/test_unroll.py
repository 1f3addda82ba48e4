"""A few layers stand for all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit.models.methods.full import Full
from ftkit.models.methods.head import FeatureExtraction
from ftkit.models.methods.lora import Lora, Qlora
from ftkit.observe.allocator import replay
from ftkit.observe.peaks import allocator_events, find_peak
from ftkit.plan.tracing.layer_choice import choose_layers
from ftkit.plan.tracing.trace import trace
from ftkit.plan.tracing.unroll import keep_layers, neighbourhoods, unroll
from tests.plan import models

MIXED = {"cheap": 0.5, "layer": 0.5}


@pytest.mark.parametrize("recompute", ["none", "cheap", MIXED], ids=str)
@pytest.mark.parametrize("method", [FeatureExtraction(), Lora(), Qlora(), Full()], ids=lambda method: method.name)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_an_unrolled_trace_is_the_whole_trace_to_the_byte(family, method, recompute):
    deep = 11 if recompute == MIXED else 7  # of the first, seven stand for the others, of the second four or five
    config, architecture = models.run_config(family, method, recompute), models.architecture(family, deep)
    dtype, sizes = models.DTYPES["bf16"], models.shape(family)

    whole = trace(config, architecture, dtype, sizes)
    chosen = choose_layers(config, architecture)
    small = trace(chosen.config, chosen.architecture, dtype, sizes, levels=chosen.levels)
    unrolled = unroll(small, chosen.kept, chosen.kinds)

    assert len(chosen.kept) < deep
    assert unrolled.weights == whole.weights
    assert unrolled.model_flops(2) == whole.model_flops(2)
    assert unrolled.at_marks() == whole.at_marks()
    assert find_peak(unrolled).active_bytes == find_peak(whole).active_bytes
    assert replay(allocator_events(unrolled)) == replay(allocator_events(whole))


def test_four_layers_stand_for_any_number_of_equal_ones():
    assert len(keep_layers(["same"] * 80)) == 4


def test_of_32_layers_the_first_of_which_is_of_another_kind_five_are_kept():
    assert keep_layers(["dense"] + 31 * ["experts"]) == [0, 1, 29, 30, 31]


@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=24))
def test_the_layers_kept_show_every_layer_between_its_own_neighbours(kinds):
    kept = keep_layers(kinds)

    assert set(neighbourhoods([kinds[number] for number in kept])) == set(neighbourhoods(kinds))
    assert kept == sorted(set(kept))
