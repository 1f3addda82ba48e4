import csv
import io
import json
import random

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ftkit.cli import main
from ftkit.errors import DataError
from ftkit.records.job import JobPlan
from ftkit.records.schema import Measurement, Prediction, ResultLine, RunLine, RunRecord
from ftkit.report import text, words
from ftkit.report.collect import Run, collect_runs
from ftkit.report.columns import filled_columns, relative_error, split_shared
from ftkit.report.compare import efficient_front, labels
from ftkit.report.contest import contest, contest_cells
from ftkit.report.pages.chart_data import changed_settings
from ftkit.report.pages.page import html_page, shared_budget
from ftkit.report.words import distribution
from tests.made_records import write_run, write_runs

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>|&"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return collect_runs([write_runs(tmp_path_factory.mktemp("runs"), 12)])


def bare_run(memory, speed, name="run"):
    measured = Measurement(peak_active_bytes=memory, tokens_per_second=speed)
    line = RunLine(
        name=name, started="", config={}, engine="plain", precision="bf16", world_size=1, device="cpu", num_steps=1
    )
    end = ResultLine(status="completed", num_steps=1, train_seconds=1, total_seconds=1, measurement=measured)
    return Run(name, RunRecord(run=line, result=end))


def test_records_are_found_at_and_below_the_given_folders_once(tmp_path):
    folder = write_runs(tmp_path / "sweep", 3)
    found = collect_runs([folder, next(iter(sorted(folder.iterdir()))), folder])
    assert sorted(run.name for run in found) == sorted(path.name for path in folder.iterdir())


def test_records_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for sweep in ("a", "b"):
        write_run(tmp_path / sweep / "lora", {}, random.Random(0))
    assert sorted(run.name for run in collect_runs([tmp_path])) == ["a/lora", "b/lora"]


def test_a_folder_without_records_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(DataError, match=r"no record\.jsonl in or below"):
        collect_runs([tmp_path])
    with pytest.raises(DataError, match="no run at"):
        collect_runs([tmp_path / "nowhere"])


def test_what_a_shell_finds_beside_runs_is_left_out_with_a_warning(tmp_path):
    folder = write_runs(tmp_path / "sweep", 3)
    page, empty = tmp_path / "page.html", tmp_path / "empty"
    page.write_text("<p>")
    empty.mkdir()
    with pytest.warns(UserWarning, match="is left out") as told:
        assert len(collect_runs([page, folder, empty])) == 3
    assert [str(one.message).split(" is left out")[0] for one in told] == [str(page), str(empty)]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"engine": "plain", "zero_stage": 0}, "plain (DDP)"),
        ({"zero_stage": 3, "config": {"engine": {"ds_config": "zero3"}}}, "ZeRO-3"),
        (
            {"zero_stage": 3, "offload_parameters": "cpu", "config": {"engine": {"ds_config": "mine.json"}}},
            "ZeRO-3, parameters on cpu",
        ),
        ({"config": {"engine": {"zero_stage": 1, "offload_optimizer": "nvme"}}}, "ZeRO-1, optimizer on nvme"),
        ({"config": {"engine": {}}}, "ZeRO-2"),  # an older record
        ({"config": {"engine": {"ds_config": "zero3"}}}, "DeepSpeed by zero3"),  # an older record, which cannot know
        ({"engine": "unknown"}, "unknown"),
    ],
)
def test_a_run_is_shown_with_the_stage_that_it_had(fields, words):
    line = {"config": {}, "engine": "deepspeed", "precision": "bf16", "world_size": 2, "device": "cpu"} | fields
    assert distribution(RunLine(name="run", started="", num_steps=1, **line)) == words


def test_a_run_without_an_end_is_a_row_that_says_unfinished(tmp_path):
    folder = write_run(tmp_path / "killed", {}, random.Random(0))
    lines = (folder / "record.jsonl").read_text().splitlines()
    (folder / "record.jsonl").write_text("\n".join(lines[:5]) + '\n{"kind": "step", "st')
    with pytest.warns(UserWarning, match=r"record\.jsonl:6: this line is not read"):
        (run,) = collect_runs([folder])
    assert run.status == "unfinished"
    assert len(run.record.steps) == 4


def test_a_record_of_an_older_schema_is_read_as_far_as_it_goes_with_a_warning(tmp_path):
    folder = write_run(tmp_path / "old", {}, random.Random(0))
    path = folder / "record.jsonl"
    first, *rest = path.read_text().splitlines()
    old = json.loads(first) | {"schema_version": 0, "prediction": "512 MiB"}
    path.write_text("\n".join([json.dumps(old), *rest]))
    with pytest.warns(UserWarning, match=r"record\.jsonl:1: (schema 0|left out prediction)"):
        (run,) = collect_runs([folder])
    assert run.record.run.prediction is None
    assert run.status == "completed"


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), max_size=30))
def test_no_run_beats_one_of_the_front_and_every_other_run_is_beaten(points):
    runs = [bare_run(memory, speed) for memory, speed in points]
    front = efficient_front(runs, "peak_active_bytes")
    for position, (memory, speed) in enumerate(points):
        beaten = any(m <= memory and s >= speed and (m, s) != (memory, speed) for m, s in points)
        assert beaten or points[position] in [points[one] for one in front]
        assert not (beaten and position in front)


def test_the_error_is_predicted_less_measured_over_measured(runs):
    run = next(run for run in runs if run.measured.peak_active_bytes)
    predicted, measured = run.predicted.peak_active_bytes, run.measured.peak_active_bytes
    assert relative_error(run, "peak_active_bytes") == pytest.approx(predicted / measured - 1)
    assert relative_error(run, "peak_reserved_bytes") is None


def test_what_is_planned_of_a_training_is_over_the_lengths_of_its_data_in_all_its_figures():
    job = JobPlan(start_seconds=8, steps_seconds=20.0, checkpoint_bytes=0, result_bytes=0)
    planned = Prediction(
        num_steps=40, step_seconds=2.0, samples_per_second=16.0, tokens_per_second=2048.0, total_seconds=80.0, job=job
    )
    run = bare_run(1, 1)
    line = run.record.run.model_copy(update={"prediction": planned})
    found = Run("run", run.record.model_copy(update={"run": line})).predicted
    assert (found.step_seconds, found.samples_per_second, found.total_seconds) == (0.5, 64.0, 20.0)
    assert found.tokens_per_second == planned.tokens_per_second


def test_what_all_runs_share_is_said_once_and_a_figure_never_counts_as_shared(runs):
    differing, shared = split_shared(runs, filled_columns(runs))
    assert {column.key for column in shared} >= {"model", "dataset", "device", "precision"}
    assert {column.group for column in shared} == {"configuration"}
    assert {"method", "engine", "name"} <= {column.key for column in differing}


def test_labels_are_unique(runs):
    differing, _ = split_shared(runs, filled_columns(runs))
    found = labels(runs, differing)
    assert len(set(found)) == len(found)
    assert any(label.startswith("LoRA r=8") for label in found)


def test_seeds_of_one_configuration_are_taken_together_with_their_deviation(tmp_path):
    for seed in (1, 2, 3):
        write_run(tmp_path / f"lora-{seed}", {"training": {"seed": seed}}, random.Random(seed))
    write_run(tmp_path / "full", {"method": {"name": "full"}}, random.Random(4))
    lines = contest(collect_runs([tmp_path]))
    assert sorted((line.label, line.num_runs) for line in lines) == [("LoRA r=8", 3), ("full", 1)]
    headings, rows = contest_cells(lines)
    accuracy = headings.index("Accuracy")
    assert sum(row[accuracy].is_best for row in rows) == 1
    assert any("±" in row[accuracy].text for row in rows)


def test_csv_and_json_hold_base_units_and_leave_empty_what_was_not_taken(runs):
    rows = list(csv.DictReader(io.StringIO(text.as_csv(runs))))
    failed = [row for row in rows if row["status"] == "out of memory"]
    assert [int(row["peak_active_bytes"]) for row in rows if row["peak_active_bytes"]] == [
        run.measured.peak_active_bytes for run in runs if run.measured.peak_active_bytes
    ]
    assert failed
    assert all(row["peak_active_bytes"] == "" and row["tokens_per_second"] == "" for row in failed)
    assert json.loads(text.as_json(runs))[0]["peak_reserved_bytes"] is None


def test_what_failed_before_its_first_step_took_no_time_that_anybody_measured():
    line = bare_run(1, 1).record.run
    end = ResultLine(status="failed", failure="refused", num_steps=0, train_seconds=0, total_seconds=0,
                     measurement=Measurement())  # fmt: skip
    (row,) = json.loads(text.as_json([Run("refused", RunRecord(run=line, result=end))]))
    assert (row["train_seconds"], row["total_seconds"], row["num_steps"]) == (None, None, None)


def test_markdown_escapes_what_would_end_a_cell(tmp_path):
    write_run(tmp_path / "one", {}, random.Random(0), name=HOSTILE)
    table = text.markdown(collect_runs([tmp_path]))
    rows = [line for line in table.splitlines() if line.startswith("| &lt;/script>")]
    assert rows
    assert r"\|&" in rows[0]


def test_markdown_leaves_a_sign_that_opens_no_tag():
    shown = text.escape_markdown("p < 0.001, <0.01 % and <b>, </b>, <!-- --> or <?x?>")
    assert shown == "p < 0.001, <0.01 % and &lt;b>, &lt;/b>, &lt;!-- --> or &lt;?x?>"


@pytest.mark.parametrize("width", [60, 110, 400])
def test_the_terminal_gets_every_run_and_every_reason_at_any_width(runs, width):
    console = Console(width=width, record=True, file=io.StringIO())
    text.print_table(runs, console)
    shown = console.export_text()
    assert "Same in all:" in shown
    assert "asked for 1.2 GiB more" in " ".join(shown.split())
    assert shown.count("feature extraction") >= 3


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (1536, "1.50 KiB"), (335544320, "320 MiB"), (68400000, "65.2 MiB")]
)
def test_sizes_have_three_digits(count, shown):
    assert words.size(count) == shown


@pytest.mark.parametrize(
    ("share", "shown"), [(0.0, "0 %"), (0.0042, "+0.42 %"), (-0.353, "-35.30 %"), (-0.00003, "< 0.01 %")]
)
def test_only_an_exact_prediction_has_an_error_of_zero(share, shown):
    assert words.signed_percent(share) == shown


def test_only_settings_that_differ_from_the_defaults_are_listed(runs):
    run = next(run for run in runs if run.setting("engine.zero_stage") == 2)
    assert ["engine.zero_stage", "2"] in changed_settings(run.record.run.config)
    assert "model.name" not in [key for key, _ in changed_settings(run.record.run.config)]


def test_the_page_escapes_every_text_and_names_no_other_address(tmp_path):
    write_run(tmp_path / "one", {"data": {"dataset": HOSTILE}}, random.Random(0), name=HOSTILE)
    page = html_page(collect_runs([tmp_path]), title=HOSTILE)
    assert "<script>alert" not in page
    assert "<img" not in page
    assert 'src="http' not in page
    assert "connect-src" not in page
    assert "default-src 'none'" in page


def test_the_budget_is_the_one_that_all_runs_were_planned_for():
    def planned(budget):
        line = bare_run(1, 1).record.run.model_copy(update={"prediction": Prediction(budget_bytes=budget)})
        return Run("run", RunRecord(run=line))

    assert shared_budget([planned(8), planned(8), bare_run(1, 1)]) == 8
    assert shared_budget([planned(8), planned(9)]) is None
    assert shared_budget([bare_run(1, 1)]) is None


def test_a_page_of_one_unfinished_run_without_figures_is_still_a_page():
    line = bare_run(None, None).record.run
    page = html_page([Run("started", RunRecord(run=line))])
    assert "unfinished" in page
    assert 'data-chart="tradeoff"' not in page


def test_the_command_writes_every_format_by_its_ending(tmp_path):
    folder = write_runs(tmp_path / "sweep", 4)
    names = [tmp_path / "out" / f"report{ending}" for ending in (".html", ".md", ".tex", ".csv", ".json")]
    outputs = [part for name in names for part in ("--output", str(name))]
    result = CliRunner().invoke(main, ["report", str(folder), *outputs, "--budget", "1GiB"])
    assert result.exit_code == 0, result.output
    assert all(name.stat().st_size > 100 for name in names)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--output", "report.pdf"], "what format is '.pdf'"),
        (["--sort", "tokens_per_secnd"], "did you mean 'tokens_per_second'"),
        (["--output", "report.html", "--budget", "plenty"], "is not a size in bytes"),
        (["--output", "report.html", "--budget", "0"], "a memory budget of 0 holds nothing"),
        (["nowhere"], "no run at nowhere"),
        (["--format", "csv", "--json"], "--format and --json each say in which format; give one"),
        (["--output", "report.md", "--json"], "--json and --output each say in which format"),
        (["--title", "Mine"], "--title would change nothing: a page alone shows"),
        (["--output", "report.md", "--budget", "8GiB"], "--budget would change nothing"),
    ],
)
def test_what_the_command_cannot_do_is_said_in_a_sentence(tmp_path, arguments, sentence):
    folder = write_runs(tmp_path / "sweep", 1)
    result = CliRunner().invoke(main, ["report", str(folder), *arguments])
    assert result.exit_code in (2, 3)
    assert sentence in result.output
    assert "Traceback" not in result.output


def test_sorting_leaves_what_was_not_taken_for_last(tmp_path):
    folder = write_runs(tmp_path / "sweep", 12)
    result = CliRunner().invoke(main, ["report", str(folder), "--format", "json", "--sort", "-tokens_per_second"])
    speeds = [row["tokens_per_second"] for row in json.loads(result.stdout)]
    taken = [speed for speed in speeds if speed is not None]
    assert taken == sorted(taken, reverse=True)
    assert speeds[len(taken) :] == [None]


def test_the_command_reads_old_and_broken_records_as_far_as_they_go_and_names_file_and_line(tmp_path):
    old = write_run(tmp_path / "old", {}, random.Random(0)) / "record.jsonl"
    first, *rest = old.read_text().splitlines()
    old.write_text("\n".join([json.dumps(json.loads(first) | {"schema_version": 0, "prediction": "512 MiB"}), *rest]))
    broken = write_run(tmp_path / "broken", {}, random.Random(1)) / "record.jsonl"
    whole = broken.read_text()
    broken.write_text(whole[: whole.rindex('{"kind":"result"') + 40])
    done = CliRunner().invoke(main, ["report", str(tmp_path), "--json"])
    assert done.exit_code == 0
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["old"]["status"] == "completed"
    assert rows["old"]["prediction"] is None
    assert rows["broken"]["status"] == "unfinished"
    assert rows["broken"]["validation_loss"] is not None
    number = len(broken.read_text().splitlines())
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 3
    assert f"{old}:1: schema 0" in done.stderr
    assert f"{old}:1: left out prediction" in done.stderr
    assert f"{broken}:{number}: this line is not read" in done.stderr


def test_json_has_every_part_of_a_measurement(runs):
    for run, row in zip(runs, json.loads(text.as_json(runs)), strict=True):
        measured = run.measured.model_dump(mode="json")
        assert {key: row[key] for key in ("phases", "largest_tensors", "peak_breakdown")} == {
            key: measured[key] for key in ("phases", "largest_tensors", "peak_breakdown")
        }
        assert row["config"] == run.record.run.config
        assert row["versions"] == {"torch": "2.13.0"}
        assert len(row["evaluations"]) == len(run.record.evaluations)


def test_a_few_runs_stand_side_by_side_where_a_table_is_too_narrow_for_them(runs):
    file = io.StringIO()
    text.print_table(runs[:2], Console(width=80, file=file))
    lines = file.getvalue().splitlines()
    assert sum("───" in line for line in lines) == 1, "one table"
    headings = [line.split("  ")[0].strip() for line in lines]
    assert headings.index("Step, measured") > headings.index("Peak live, measured") > headings.index("Method")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_of_the_terminal_is_wider_than_the_terminal(runs, width):
    file = io.StringIO()
    text.print_table(runs, Console(width=width, file=file))
    assert max(len(line) for line in file.getvalue().splitlines()) <= width
