"""Memory of reading, splitting and tokenizing a file, above that of the process before it.

    python -m benchmarks.data_memory FOLDER SIZE [KIND [made-up]]

writes FOLDER/texts-SIZE.KIND, unless it is there: texts of 20 to 150 words with two labels, so many that they are SIZE
MiB as CSV; KIND is csv (unless said otherwise), jsonl, json (an array that is one line) or parquet (a single group of
rows, as pandas writes it). Then it prepares them as a training does, with MiniLM's tokenizer and the tokens of earlier
runs that the cache has. With `made-up` numbers stand in the place of those tokens, so that a large file need not be
tokenized first. Linux tells own memory (RssAnon), which nobody can take back, from pages of files (RssFile), which the
system takes back where memory is short.
"""

import json
import random
import re
import string
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import torch  # noqa: F401  # loaded before anything is measured, as a training has it
import transformers  # noqa: F401

from ftkit.config.files import load_config
from ftkit.data.prepare import prepare_data
from ftkit.data.tokens.kept import Arrays, KeptTokens
from ftkit.machine.kept_arrays import kept_tokens
from ftkit.models.sources.source import load_tokenizer, resolve_source

_SECONDS = 0.05


def texts(num_mib: int) -> Iterator[tuple[str, str]]:
    """Yield random words and a label; fewer MiB are the beginning of more."""
    chance = random.Random(1)
    words = ["".join(chance.choices(string.ascii_lowercase, k=chance.randint(2, 9))) for _ in range(3000)]
    size = len("text,label\n")
    while size < num_mib * 2**20:
        text = " ".join(chance.choices(words, k=chance.randint(20, 150)))
        label = chance.choice(["good", "bad"])
        size += len(f"{text},{label}\n")
        yield text, label


def write(path: Path, num_mib: int) -> None:
    """Write a file of the kind that its suffix says."""
    rows = texts(num_mib)
    if path.suffix == ".parquet":
        columns = zip(*rows, strict=True)
        pa_parquet.write_table(pa.table(dict(zip(("text", "label"), columns, strict=True))), path, row_group_size=2**20)
        return
    begin, between, end = {".csv": ("text,label\n", "\n", "\n"), ".jsonl": ("", "\n", "\n"), ".json": ("[", ",", "]")}[
        path.suffix
    ]
    with path.open("w") as file:
        for place, (text, label) in enumerate(rows):
            row = f"{text},{label}" if path.suffix == ".csv" else json.dumps({"text": text, "label": label})
            file.write((between if place else begin) + row)
        file.write(end)


def made_up(self: KeptTokens, form: tuple[Any, ...], texts: Sequence[str], make: Callable[[], Arrays]) -> Arrays:  # noqa: ARG001  # in the place of KeptTokens.arrays
    """Return arrays as the cache has them, with numbers in the place of tokens: one for about two characters."""
    _, max_length, _ = form
    lengths = np.array([min(max_length, len(text) // 2) for text in texts])
    tokens = (np.arange(lengths.sum()) % 30_000).astype(np.int32)
    segments = np.zeros(len(tokens), np.int8)
    return {"tokens": tokens, "lengths": lengths, "segments": segments, "num_tokens": lengths}


def resident() -> dict[str, int]:
    """Return the resident bytes of this process by their kind."""
    status = Path("/proc/self/status").read_text()
    return {kind: 1024 * int(size) for kind, size in re.findall(r"(RssAnon|RssFile):\s+(\d+) kB", status)}


def watch(peaks: dict[str, int], ended: threading.Event) -> None:
    """Note the most of each kind until it is over."""
    while not ended.wait(_SECONDS):
        for kind, size in resident().items():
            peaks[kind] = max(peaks.get(kind, 0), size)


def main() -> None:
    """Prepare one file and print what that took."""
    folder, num_mib, kind = Path(sys.argv[1]), int(sys.argv[2]), (*sys.argv[3:4], "csv")[0]
    if sys.argv[4:] == ["made-up"]:
        KeptTokens.arrays = made_up  # type: ignore[method-assign]  # a benchmark's process ends with it
    path = folder / f"texts-{num_mib}.{kind}"
    if not path.exists():
        write(path, num_mib)
    config = load_config(settings=[f"data.dataset={path}"])
    tokenizer = load_tokenizer(resolve_source(config.model, config.task))
    before, begin = resident(), time.perf_counter()
    peaks: dict[str, int] = {}
    ended = threading.Event()
    watcher = threading.Thread(target=watch, args=(peaks, ended))
    watcher.start()
    data = prepare_data(config.data, config.task, tokenizer, 1, store=kept_tokens(config.cache))
    ended.set()
    watcher.join()
    seconds = time.perf_counter() - begin
    tokens = sum(len(split.tokens) for split in data.splits)
    print(f"{path.stat().st_size / 2**20:.0f} MiB, {tokens:,} tokens, {seconds:.0f} s")
    for kind, size in peaks.items():
        left = resident()[kind]
        print(f"{kind}: {before[kind] >> 20} MiB before, {size >> 20} MiB at most, {left >> 20} MiB after")


if __name__ == "__main__":
    main()
