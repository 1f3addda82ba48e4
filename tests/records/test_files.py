import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit.errors import DataError
from ftkit.records.figures import Figures, MemoryBreakdown
from ftkit.records.files import RecordWriter, read_record
from ftkit.records.schema import Basis, EvaluationLine, Measurement, Prediction, ResultLine, RunLine, StepLine

RUN = RunLine(
    name="lora-1",
    started="2026-01-02T03:04:05Z",
    config={"task": "causal-lm"},
    versions={"torch": "2.13.0"},
    engine="plain",
    precision="bf16",
    world_size=2,
    device="cpu",
    num_steps=3,
    prediction=Prediction(device="cpu", peak_active_bytes=1000),
)
RESULT = ResultLine(
    status="completed",
    num_steps=3,
    train_seconds=1.5,
    total_seconds=2.5,
    measurement=Measurement(device="cpu", peak_breakdown=MemoryBreakdown(parameter_bytes=7, buffer_bytes=5)),
)


def step_line(step, loss=1.0):
    return StepLine(
        step=step, epoch=0.5, loss=loss, learning_rate=1e-4, grad_norm=None, step_seconds=0.25, tokens_per_second=100.0
    )


def evaluation_line(step, split="validation", loss=1.0):
    return EvaluationLine(step=step, epoch=0.5, split=split, loss=loss, num_samples=10, seconds=0.5)


def write(path, *lines):
    writer = RecordWriter(path)
    for line in lines:
        writer.write(line)
    writer.close()
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "record.jsonl"


def test_a_record_reads_back_as_it_was_written(path):
    write(path, RUN, step_line(1), evaluation_line(1), step_line(2), RESULT)
    record = read_record(path)
    assert record.run == RUN
    assert record.steps == (step_line(1), step_line(2))
    assert record.evaluations == (evaluation_line(1),)
    assert record.result == RESULT


def test_a_result_folder_stands_for_its_record(path):
    write(path, RUN)
    assert read_record(path.parent) == read_record(path)


def test_a_line_is_on_disk_as_soon_as_it_is_written(path):
    writer = RecordWriter(path)
    writer.write(RUN)
    assert read_record(path).run == RUN
    writer.close()


def test_a_second_writer_appends(path):
    write(path, RUN, step_line(1))
    write(path, step_line(2))
    assert [line.step for line in read_record(path).steps] == [1, 2]


@given(cut=st.integers(min_value=0, max_value=10_000))
def test_a_killed_run_loses_at_most_its_last_line(tmp_path_factory, cut):
    path = write(tmp_path_factory.mktemp("killed") / "record.jsonl", RUN, step_line(1), step_line(2))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    kept = whole[: first + cut % (len(whole) - first + 1)]
    path.write_bytes(kept)
    num_newlines = kept.count(b"\n")
    if kept.endswith((b"\n", b"}")):
        record = read_record(path)
    else:
        with pytest.warns(UserWarning, match=rf"record.jsonl:{num_newlines + 1}: this line is not read"):
            record = read_record(path)
    assert len(record.steps) == num_newlines - 1 + kept.endswith(b"}")


def test_a_step_that_was_taken_again_counts_as_it_was_last(path):
    write(
        path,
        RUN,
        step_line(1),
        step_line(2, loss=2.0),
        step_line(2, loss=3.0),
        evaluation_line(2),
        evaluation_line(2, loss=9),
    )
    record = read_record(path)
    assert [line.loss for line in record.steps] == [1.0, 3.0]
    assert [line.loss for line in record.evaluations] == [9.0]


def test_the_newest_scores_of_a_split_are_found(path):
    write(path, RUN, evaluation_line(1), evaluation_line(2, loss=0.5), evaluation_line(2, split="test"))
    record = read_record(path)
    newest = record.last_evaluation("validation")
    assert newest is not None
    assert (newest.step, newest.loss) == (2, 0.5)
    assert record.last_evaluation("train") is None


def test_keys_of_a_newer_schema_are_ignored(path):
    line = json.loads(RUN.model_dump_json()) | {"schema_version": 2, "weather": "fine"}
    path.write_text(json.dumps(line) + "\n")
    assert read_record(path).run.name == RUN.name


def test_a_line_of_an_unknown_kind_is_left_out_with_its_place(path):
    write(path, RUN)
    with path.open("a") as file:
        file.write('{"kind": "weather"}\n')
    with pytest.warns(UserWarning, match=r"record.jsonl:2: this line is not read"):
        assert read_record(path).run == RUN


def test_no_file_is_a_sentence(tmp_path):
    with pytest.raises(DataError, match="give a result folder of ftkit"):
        read_record(tmp_path)


def test_a_record_without_its_first_line_is_refused(path):
    write(path, step_line(1))
    with pytest.raises(DataError, match="no line of kind 'run'"):
        read_record(path)


def test_a_figure_that_was_not_taken_stays_empty(path):
    write(path, RUN, RESULT)
    result = read_record(path).result
    assert result is not None
    assert result.measurement.peak_reserved_bytes is None


def test_planned_and_observed_share_the_fields_of_figures():
    assert Figures.model_fields.keys() <= Prediction.model_fields.keys() & Measurement.model_fields.keys()


@given(st.lists(st.integers(0, 2**50), min_size=6, max_size=6))
def test_the_parts_of_a_peak_add_up(parts):
    breakdown = MemoryBreakdown(**dict(zip(MemoryBreakdown.model_fields, parts, strict=True)))
    assert breakdown.total_bytes == sum(parts)


@pytest.mark.parametrize("kept", [1, 10, -1])
def test_a_line_that_was_cut_short_does_not_swallow_what_is_appended(kept, tmp_path):
    path = write(tmp_path / "record.jsonl", RUN, step_line(1))
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    path.write_bytes(whole[:start] + whole[start:][:kept])
    write(path, step_line(1, loss=2.0), RESULT)
    record = read_record(path)
    assert [line.loss for line in record.steps][-1] == 2.0
    assert record.result == RESULT


@pytest.mark.parametrize(
    ("said", "basis"),
    [
        ("traced", Basis.TRACED),
        ("traced whole", Basis.TRACED_WHOLE),
        ("between micro-batches of 1 and 16", Basis.INTERPOLATED),
        ("by formula (Korthikanti et al. 2022): it reads values back", Basis.FORMULA),
    ],
)
def test_an_earlier_record_whose_prediction_has_a_sentence_for_its_basis_is_read(path, said, basis):
    line = json.loads(RUN.model_dump_json())
    del line["prediction"]["basis_note"]
    line["prediction"]["basis"] = said
    path.write_text(json.dumps(line) + "\n")

    prediction = read_record(path).run.prediction
    assert prediction.basis is basis
    assert prediction.found == said
