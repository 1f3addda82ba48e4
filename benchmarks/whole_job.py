"""The time and the bytes of whole jobs, as they were planned when they began and as they were measured.

    python benchmarks/whole_job.py                 # three jobs over the embedded reviews, some minutes of two cores
    python benchmarks/whole_job.py "lora=--method lora --set training.max_steps=20"

Each job is a process of its own, with a cache that has this machine's calibration in it, if there is one (`ftkit doctor
--calibrate`), and nothing else. Time is from the command to its end; beside it stand the seconds that a processor
worked for the job and for the process that opens its result, which is what it takes of one core that nobody else uses.
Bytes are all that lies in the result folder and in the cache then.
"""

import argparse
import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ftkit.machine.disk import cache_folder
from ftkit.plan.seconds.calibration import CALIBRATIONS
from ftkit.records.files import read_record
from ftkit.records.job import JobPlan
from ftkit.report.planned.job import job_rows
from ftkit.units import format_bytes, format_seconds

JOBS = (
    "frozen=--method feature-extraction --set data.max_train_samples=2000 --set data.max_eval_samples=500",
    "lora=--method lora --set data.max_train_samples=300 --set data.max_eval_samples=100 --set training.epochs=2",
    "full=--method full --set data.max_train_samples=200 --set data.max_eval_samples=100 --set training.epochs=1",
)


def main() -> None:
    """Run jobs and print each one's plan beside what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", default=JOBS, help="name=flags of `ftkit train`")
    for job in parser.parse_args().jobs:
        name, _, flags = job.partition("=")
        with tempfile.TemporaryDirectory() as place:
            plan, seconds, worked, num_bytes = run(shlex.split(flags), Path(place))
        told = [
            f"time {against(plan.seconds, seconds, format_seconds)}",
            f"of one core {against(plan.seconds, worked, format_seconds)}",
            f"disk {against(plan.num_bytes, num_bytes, format_bytes)}",
            "; ".join(f"{part.strip()} {value}" for part, value in job_rows(plan)),
        ]
        sys.stdout.write(f"{name}\n" + "".join(f"  {line}\n" for line in told))
        sys.stdout.flush()


def run(flags: list[str], place: Path) -> tuple[JobPlan, float, float, int]:
    """Run one job; return its plan, the seconds that it took and that a core worked, and the bytes that it has left."""
    folder, cache = place / "run", place / "cache"
    if (calibrated := cache_folder() / CALIBRATIONS).is_dir():
        shutil.copytree(calibrated, cache / CALIBRATIONS)
    command = [sys.executable, "-m", "ftkit", "train", *flags, "--output", str(folder)]
    started, before = time.perf_counter(), worked_for_children()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"FTKIT_CACHE": str(cache)})
    seconds, worked = time.perf_counter() - started, worked_for_children() - before
    prediction = read_record(folder).run.prediction
    assert prediction is not None
    assert prediction.job is not None
    files = [file for top in (folder, cache) for file in top.rglob("*") if file.is_file() and not file.is_symlink()]
    return prediction.job, seconds, worked, sum(file.stat().st_size for file in files)


def worked_for_children() -> float:
    """Return the seconds that a processor has worked for processes that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def against(planned: float | None, measured: float, form: object) -> str:
    """Return a planned figure, the measured one, and how far off the plan is."""
    assert planned is not None
    assert callable(form)
    return f"planned {form(planned)}, measured {form(measured)} ({planned / measured - 1:+.0%})"


if __name__ == "__main__":
    main()
