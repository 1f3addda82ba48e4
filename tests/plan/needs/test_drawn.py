"""What a process takes for the texts that are drawn, beside a plan of the longest."""

from dataclasses import replace

from ftkit.config.tree import RunConfig
from ftkit.plan.inputs.shapes import Sequences
from ftkit.plan.inputs.target import Target
from ftkit.plan.needs.heap import HEAP_SHARE
from ftkit.plan.predict import predict
from tests.plan import models

TARGET = Target("cpu", "cpu", None, 2**34, num_cpus=2)
LONGEST = Sequences(num=64, longest=32, are_equal=False, lengths=(32,) * 64)


def planned(sequences, method="full", **target):
    config = RunConfig.model_validate(
        {
            "model": {"name": "bert", "precision": "fp32"},
            "method": {"name": method},
            "cache": {"trunk": "off"},
            "batch": {"global_batch_size": 16, "micro_batch_tokens": 512},
        }
    )
    return predict(config, replace(TARGET, **target), models.architecture("bert"), sequences=sequences)


def test_a_process_is_planned_for_the_texts_that_are_drawn_and_fits_by_the_longest():
    longest, short = (planned(replace(LONGEST, lengths=(length,) * 64)) for length in (32, 8))
    assert longest.peak_process_bytes == longest.process_high_bytes
    assert short.peak_active_bytes == longest.peak_active_bytes
    assert short.process_high_bytes == longest.process_high_bytes == short.host_bytes == short.needed_bytes
    # A quarter of the tokens and a sixteenth of the scores; weights and their moments stay as they are.
    parts = longest.peak_breakdown
    grows, saved = parts.activation_bytes + parts.temporary_bytes, longest.peak_process_bytes - short.peak_process_bytes
    assert 0.75 * grows < saved < (1 + HEAP_SHARE) * grows
    budget = (short.peak_process_bytes + longest.peak_process_bytes) // 2
    assert not planned(replace(LONGEST, lengths=(8,) * 64), memory_bytes=budget, ram_bytes=budget).fits


def test_where_nothing_is_kept_for_a_backward_an_evaluation_has_the_longest_texts():
    found = planned(replace(LONGEST, lengths=(8,) * 64), "feature-extraction")
    assert found.peak_process_bytes == found.process_high_bytes


def test_texts_of_unknown_lengths_are_the_longest():
    found = planned(replace(LONGEST, lengths=()))
    assert found.peak_process_bytes == found.process_high_bytes
