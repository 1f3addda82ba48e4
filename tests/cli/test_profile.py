"""A sweep ends with a code that says whether anything was measured."""

import pytest
from click.testing import CliRunner

from ftkit.cli import main
from ftkit.cli.profile import exit_code
from ftkit.records.schema import Measurement, ResultLine, RunLine, RunRecord
from ftkit.report.collect import Run


def ended(failure):
    line = RunLine(
        name="a", started="", config={}, engine="plain", precision="fp32", world_size=1, device="cpu", num_steps=1
    )
    status = "completed" if failure is None else "failed"
    result = ResultLine(
        status=status, failure=failure, num_steps=0, train_seconds=0, total_seconds=0, measurement=Measurement()
    )
    return Run("a", RunRecord(run=line, result=result))


@pytest.mark.parametrize(
    ("failures", "code"),
    [
        ([None, "refused"], 0),
        (["refused"], 1),
        (["out of memory", "out of memory"], 8),
        (["out of memory", "crash"], 1),
    ],
)
def test_a_sweep_of_which_nothing_ran_is_not_a_success(failures, code):
    assert exit_code([ended(failure) for failure in failures]) == code


def test_a_sweep_that_is_refused_does_not_say_first_where_it_goes(tmp_path):
    done = CliRunner().invoke(main, ["profile", "--sweep", "method=nope", "--output", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "unknown method 'nope'" in done.stderr
    assert "profiling into" not in done.output
