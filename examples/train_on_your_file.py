"""Train on a file of your own, then set what was measured beside what was planned. Runs on a CPU, without a network.

    python examples/train_on_your_file.py

The embedded model comes with scripts/setup; `model.name` takes a folder or a name of the hub as well.
"""

from pathlib import Path

import ftkit
from ftkit.units import format_bytes

file = Path("reviews.csv")
if not file.exists():
    rows = [f"a {word} film with a {word} plot number {n},{word}" for n in range(100) for word in ("good", "bad")]
    file.write_text("\n".join(["text,label", *rows]) + "\n")

config = ftkit.load_config(
    settings=[
        f"data.dataset={file}",
        "data.max_length=16",
        "method.name=lora",
        "optimizer.learning_rate=3e-3",
        "training.max_steps=15",
        "output.folder=runs/example",
        "output.overwrite=true",
    ]
)
record = ftkit.train(config)

test = record.last_evaluation("test")
if test is not None and test.accuracy is not None:
    print(f"accuracy on the test split: {test.accuracy:.3f}")
planned, result = record.run.prediction, record.result
if planned is not None and result is not None:
    print(f"peak planned:  {format_bytes(planned.peak_process_bytes or 0)}")
    print(f"peak measured: {format_bytes(result.measurement.peak_process_bytes or 0)}")
