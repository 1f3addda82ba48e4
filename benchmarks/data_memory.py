"""Memory of reading, splitting and tokenizing a CSV file, above that of the process before it.

    python -m benchmarks.data_memory FILE.csv SIZE

writes a file of SIZE MiB, unless it is there: texts of 20 to 150 words, two labels. A file of another size is refused.
Then it prepares it as a training does, with MiniLM's tokenizer and the tokens of earlier runs that the cache has. Linux
tells own memory (RssAnon), which nobody can take back, from pages of files (RssFile), which the system takes back where
memory is short.
"""

import random
import re
import string
import sys
import threading
import time
from pathlib import Path

import torch  # noqa: F401  # loaded before anything is measured, as a training has it
import transformers  # noqa: F401

from ftkit.config.files import load_config
from ftkit.data.prepare import prepare_data
from ftkit.machine.kept_arrays import kept_tokens
from ftkit.models.sources.source import load_tokenizer, resolve_source

_SECONDS = 0.05


def write_texts(path: Path, num_mib: int) -> None:
    """Write a file of random words; a smaller one is the beginning of a larger one."""
    chance = random.Random(1)
    words = ["".join(chance.choices(string.ascii_lowercase, k=chance.randint(2, 9))) for _ in range(3000)]
    with path.open("w") as file:
        written = file.write("text,label\n")
        while written < num_mib * 2**20:
            text = " ".join(chance.choices(words, k=chance.randint(20, 150)))
            written += file.write(f"{text},{chance.choice(['good', 'bad'])}\n")


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
    path, num_mib = Path(sys.argv[1]), int(sys.argv[2])
    if not path.exists():
        write_texts(path, num_mib)
    if round(path.stat().st_size / 2**20) != num_mib:
        sys.exit(f"{path} has {path.stat().st_size / 2**20:.1f} MiB, not {num_mib}; name another file")
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
