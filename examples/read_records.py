"""How good were the plans? Read the records of a sweep, by default those that ship with the documentation.

python examples/read_records.py [FOLDER]
"""

import statistics
import sys
from pathlib import Path

import ftkit

sweep = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "docs" / "sweep"

errors = []
for path in sorted(sweep.glob("*/record.jsonl")):
    record = ftkit.read_record(path)
    planned = record.run.prediction
    measured = record.result.measurement if record.result else None
    if planned and measured and planned.peak_active_bytes and measured.peak_active_bytes:
        error = planned.peak_active_bytes / measured.peak_active_bytes - 1
        errors.append(abs(error))
        print(f"{record.run.name:40} {error:+8.2%}")
print(f"{len(errors)} runs, median error of the peak of live tensors: {statistics.median(errors):.2%}")
