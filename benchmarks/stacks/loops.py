"""What the loops of projects that measure memory do, where their rows leave it unsaid and their source says it.

A project is known by the beginning of its rows' `group`. What its source adds is written in the words that rows have,
and read as theirs (`stated`); another project's rows say everything themselves.
"""

from benchmarks.rows import Row

PACKED = "4-bit weights packed on the card"
"""Both give `device_map` to `from_pretrained` where weights are quantized, and move a model to the card elsewhere."""


def completed(row: Row) -> Row:
    """Return a row with what the source of its project says of its loop."""
    added = {}
    if row["group"].startswith("fitcheck/"):
        # Anassbzdd/fitcheck, scripts/measure.py: `one_step` ends before the next one begins, so nothing of it lives on.
        added = {"framework": f"{row['framework']}; outputs end with the step; {PACKED}"}
    elif row["group"].startswith("canifinetune/"):
        added = _canifinetune(row)
    return row | added  # type: ignore[return-value]  # the fields stay those of a row


def _canifinetune(row: Row) -> dict[str, str]:
    """DaoyuanLi2816/can-i-finetune-this, src/canifinetune/bench/runner.py and training/runtime.py.

    `outputs` outlasts its step. The runner of 0.4.0 has autocast, and keeps the type of 4-bit layers; that of the first
    rows has neither.
    """
    framework = f"{row['framework']}; use_reentrant=False; outputs outlast the step; {PACKED}"
    if "validation-0.4.0" not in row["source"]["file"]:
        return {"framework": framework}
    return {"framework": f"{framework}; 4-bit layers keep their type", "compute_dtype": "bf16 autocast"}
