"""How long threads wait, as the OpenMP of torch reads it in a process of its own."""

import os
import subprocess
import sys

import pytest

IMPORTS_TORCH = "from ftkit.machine.threads import wait_briefly; wait_briefly(); import torch"


def told(**environment):
    """Return what OpenMP says of its settings, in a process that sets how long to wait and then imports torch."""
    unset = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS_TORCH],
        env=unset | environment | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
    )
    if "GOMP_" not in done.stderr:
        pytest.skip("torch computes with another OpenMP than GNU's")
    return done.stderr


@pytest.mark.parametrize(
    ("environment", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "active"}, "30000000000")],
)
def test_openmp_waits_as_briefly_as_it_is_told_and_as_the_user_says_where_he_does(environment, spins):
    assert f"GOMP_SPINCOUNT = '{spins}'" in told(**environment)
