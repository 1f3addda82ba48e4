"""Malformed inputs, given to `ftkit train`: each is one clear sentence and a non-zero exit, and nothing is lost.

A fault is what is given beside the flags of a run that would work, the exit code, and words of the sentence: what was
given, and what to try.
"""

import json
import resource
import shutil

import datasets
import pytest
import torch
import transformers

from ftkit.records.files import read_record
from tests.e2e.command import flags, run
from tests.made_gguf import write_gguf

pytestmark = pytest.mark.e2e

CONFIG, DATA, MODEL, CHECKPOINT, DEVICE = 2, 3, 4, 5, 7


def given(*arguments):
    """Flags that need nothing made."""
    return lambda work, place: arguments


def file(name, content, *more):
    """A data file of this content."""

    def make(work, place):
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return "--dataset", place / name, *more

    return make


def config(content):
    """A YAML file of this content."""

    def make(work, place):
        (place / "run.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        return "--config", place / "run.yaml"

    return make


def model(change, *more):
    """A copy of the tiny BERT in which something is changed."""

    def make(work, place):
        shutil.copytree(work / "bert", place / "model")
        change(place / "model")
        return "--model", place / "model", *more

    return make


def cut(name, kept):
    """A file of a folder is truncated."""

    def change(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:kept])

    return change


def rewritten(name, content):
    """A file of a folder has this content."""
    return lambda folder: (folder / name).write_text(content)


def pickled(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def with_head(folder):
    """Make it a classifier of other labels."""
    names = {"id2label": {0: "ham", 1: "spam"}, "label2id": {"ham": 0, "spam": 1}}
    found = transformers.AutoModelForSequenceClassification.from_pretrained(folder, **names)
    found.save_pretrained(folder)


def truncated_gguf(work, place):
    from gguf import GGMLQuantizationType

    write_gguf(place / "whole.gguf", GGMLQuantizationType.Q8_0)
    (place / "cut.gguf").write_bytes((place / "whole.gguf").read_bytes()[:5000])
    return "--model", place / "cut.gguf", "--task", "causal-lm"


def saved_dataset(work, place):
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}).save_to_disk(str(place / "saved"))
    next((place / "saved").glob("*.arrow")).write_bytes(b"torn")
    return "--dataset", place / "saved"


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def chat(asked, answered):
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]}


def labelled(labels):
    return lines(*({"text": f"good film {number}", "label": label} for number, label in enumerate(labels)))


GOOD = "text,label\n" + "".join(f"film {number},{'good' if number % 2 else 'bad'}\n" for number in range(40))
LM = ("--model", "llama", "--task", "causal-lm")

FAULTS = {
    # the configuration
    "an unknown method": (given("--method", "lra"), CONFIG, ["'lra'", "lora"]),
    "an unknown task": (given("--task", "regression"), CONFIG, ["'regression'", "causal-lm"]),
    "an unknown precision": (given("--precision", "fp8"), CONFIG, ["fp8", "bf16"]),
    "an unknown flag": (given("--epoch", "1"), CONFIG, ["--epoch", "--epochs"]),
    "a word for a number": (given("--epochs", "many"), CONFIG, ["'many'", "float"]),
    "a number out of range": (given("--epochs", "-1"), CONFIG, ["training.epochs=-1", "greater than 0"]),
    "an unknown key": (given("--set", "training.epoch=1"), CONFIG, ["'training.epoch'", "did you mean 'epochs'"]),
    "an unknown section": (given("--set", "trainer.epochs=1"), CONFIG, ["'trainer'", "did you mean 'training'"]),
    "--set without a value": (given("--set", "training"), CONFIG, ["'training' has no '='", "section.field=value"]),
    "--set of broken YAML": (given("--set", "training.seed=[1"), CONFIG, ["training.seed='[1'", "quote it"]),
    "an unknown method in --set": (given("--set", "method.name=lorra"), CONFIG, ["'lorra'", "did you mean 'lora'"]),
    "a rank of nothing": (given("--set", "method.rank=0"), CONFIG, ["method.rank=0", "greater than or equal to 1"]),
    "a rank of full": (given("--method", "full", "--rank", "4"), CONFIG, ["'method.rank'", "lora and qlora have it"]),
    "two cuts": (
        given("--micro-batch-size", "4", "--micro-batch-tokens", "64"),
        CONFIG,
        ["both cut the batch", "give --micro-batch-size"],
    ),
    "a cut below the longest": (
        given("--micro-batch-tokens", "4"),
        CONFIG,
        ["micro_batch_tokens=4", "give --micro-batch-tokens"],
    ),
    "fp16 on a CPU": (given("--precision", "fp16"), DEVICE, ["fp16 on a CPU", "give --precision auto"]),
    "DoRA over weights in 4 bits under ZeRO-3 on a CPU": (
        given("--method", "qlora", "--set", "method.use_dora=true", "--engine", "deepspeed", "--zero-stage", "3"),
        DEVICE,
        ["DoRA over weights in 4 bits", "give --zero-stage 2"],
    ),
    "ZeRO on the plain engine": (
        given("--engine", "plain", "--zero-stage", "2"),
        CONFIG,
        ["ZeRO", "--engine deepspeed"],
    ),
    "DeepSpeed without ZeRO": (
        given("--engine", "deepspeed", "--zero-stage", "0"),
        CONFIG,
        ["stage 0", "--engine plain"],
    ),
    "weights off without ZeRO-3": (
        given("--zero-stage", "2", "--offload-parameters", "cpu"),
        CONFIG,
        ["--offload-parameters", "give --zero-stage 3"],
    ),
    "a disk without a path": (
        given("--zero-stage", "3", "--offload-optimizer", "nvme"),
        CONFIG,
        ["nvme", "--set engine.nvme_path="],
    ),
    "8-bit moments under ZeRO": (
        given("--zero-stage", "2", "--optimizer", "adamw_8bit"),
        CONFIG,
        ["adamw_8bit", "give --optimizer adamw"],
    ),
    "an unknown template": (given("--ds-config", "zero9"), CONFIG, ["'zero9'", "did you mean 'zero"]),
    "a share in words": (given("--gradient-checkpointing", "some"), CONFIG, ["'some'", "none, all"]),
    "a share above all": (given("--gradient-checkpointing", "1.5"), CONFIG, ["1.5", "less than or equal to 1"]),
    "an unknown preset": (given("--preset", "nothing"), CONFIG, ["'nothing'", "cpu-demo"]),
    "no configuration there": (given("--config", "absent.yaml"), CONFIG, ["absent.yaml", "give the path"]),
    "an empty configuration": (config(""), CONFIG, ["run.yaml is empty", "write sections"]),
    "a configuration of a list": (config("- a\n- b\n"), CONFIG, ["holds a list", "write sections"]),
    "a configuration of broken YAML": (config("batch: ["), CONFIG, ["run.yaml", "not valid YAML"]),
    "a configuration that would run code": (
        config("batch: !!python/object/apply:os.getcwd []"),
        CONFIG,
        ["run.yaml", "not valid YAML"],
    ),
    "a configuration of bytes": (config(b"batch: \xff\xfe"), CONFIG, ["run.yaml", "not valid YAML"]),
    "a folder that cannot be made": (given("--output", "/dev/null/x"), CONFIG, ["/dev/null/x", "--output"]),
    # the kernel's own files take no new ones, from nobody
    "a read-only folder": (given("--output", "/sys"), CONFIG, ["result folder /sys", "--output"]),
    # the data
    "no file there": (given("--dataset", "absent.csv"), DATA, ["no file absent.csv"]),
    "an empty file": (file("d.csv", ""), DATA, ["d.csv is empty", "give a file with rows"]),
    "a header alone": (file("d.csv", "text,label\n"), DATA, ["no rows", "below its header"]),
    "an unknown kind of file": (file("d.ods", "x"), DATA, ["'.ods'", "CSV"]),
    "a pickle": (file("d.pkl", b"\x80\x04."), DATA, ["'.pkl'", "save the table as Parquet or CSV"]),
    "a column that is not there": (given("--text-column", "txt"), DATA, ["'txt'", "did you mean 'text'"]),
    "a label column that is not there": (given("--label-column", "lable"), DATA, ["'lable'", "did you mean 'label'"]),
    "no column that could be text": (file("d.csv", "x,label\na,1\nb,2\n"), DATA, ["no text column", "--text-column"]),
    "several separators": (file("d.csv", "text;label,x\na;1,b\n"), DATA, ["could stand between", "data.separator"]),
    "a row too long": (file("d.csv", "text,label\na,1\nb,2,3\n"), DATA, ["line 3", "double quotes"]),
    "broken JSON": (file("d.jsonl", '{"text": "a"}\n{"text": \n'), DATA, ["line 2", "not valid JSON"]),
    "labels of mixed kinds": (
        file("d.jsonl", labelled([1, "a"])),
        DATA,
        ["'label'", "the same kind of value"],
    ),
    "a NaN label": (file("d.jsonl", labelled([1.0, 0.0, float("nan")])), DATA, ["line 3", "label or remove"]),
    "an empty label": (file("d.csv", GOOD + "film 99,\n"), DATA, ["line 42", "label or remove"]),
    "one label only": (file("d.jsonl", labelled(["a"] * 40)), DATA, ["only the label 'a'", "two labels or more"]),
    "a number to predict as a class": (
        file("d.jsonl", labelled([n / 7 for n in range(99)]), "--set", "data.label_kind=single"),
        DATA,
        ["regression", "few classes"],
    ),
    "a score of classes for a number": (
        file("d.jsonl", labelled([n / 7 for n in range(99)]), "--set", "training.best_metric=accuracy"),
        CONFIG,
        ["training.best_metric=accuracy", "not a score of a number", "pearson"],
    ),
    "a weight for no class": (
        file("d.csv", GOOD, "--set", "training.class_weights={goood: 2}"),
        CONFIG,
        ["'goood'", "did you mean 'good'"],
    ),
    "a weight of nothing": (
        given("--set", "training.class_weights={good: 0}"),
        CONFIG,
        ["training.class_weights", "'good' is 0", "above 0"],
    ),
    "text that is no UTF-8": (
        file("d.csv", "text,label\na,1\ncafé,2\n".encode("latin-1")),
        DATA,
        ["line 3, byte 3", "save the file as UTF-8"],
    ),
    "UTF-16": (file("d.csv", GOOD.encode("utf-16")), DATA, ["UTF-16", "save it as UTF-8"]),
    "a binary file": (file("d.csv", b"PK\x03\x04\0\0\0"), DATA, ["not text", "suffix"]),
    "a truncated Parquet file": (file("d.parquet", b"PAR1 and no more"), DATA, ["d.parquet", "copy or write it again"]),
    "a damaged saved dataset": (saved_dataset, DATA, ["not a whole saved dataset", "save it again"]),
    "an unknown split": (given("--set", "data.test_split=tset"), DATA, ["'tset'", "known: train"]),
    "a label that only tests have": (
        given("--set", "data.label_names=[a, b, c]"),
        DATA,
        ["3 names (a, b, c)", "one name for every label"],
    ),
    "text without labels": (file("d.txt", "a line\n"), DATA, ["text without labels", "label column"]),
    "a prompt without completion": (
        file("d.jsonl", lines({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": ""}), *LM),
        DATA,
        ["line 2", "leave it out"],
    ),
    "a chat without a template": (
        file("d.jsonl", lines(*(chat(f"film {number}?", "good") for number in range(40))), *LM),
        DATA,
        ["no chat template", "prompt and completion"],
    ),
    # the model
    "no model there": (given("--model", "./absent"), MODEL, ["no model at", "absent; give a folder"]),
    "no model on the hub": (given("--model", "nobody/nothing"), MODEL, ["'nobody/nothing'", "or a hub name"]),
    "a folder without config.json": (model(lambda one: (one / "config.json").unlink()), MODEL, ["no config.json"]),
    "a config.json that is broken": (model(rewritten("config.json", "{")), MODEL, ["config", "Give a local folder"]),
    "a config.json of another world": (
        model(rewritten("config.json", '{"model_type": "abacus"}')),
        MODEL,
        ["abacus", "Give a local folder"],
    ),
    "truncated weights": (model(cut("model.safetensors", 3000)), MODEL, ["cannot load weights", "download them again"]),
    "empty weights": (model(cut("model.safetensors", 0)), MODEL, ["cannot load weights", "download them again"]),
    "pickled weights": (model(pickled), MODEL, ["cannot load weights", ".safetensors"]),
    "weights of another model": (
        model(rewritten("config.json", '{"model_type": "gpt2"}')),
        MODEL,
        ["holds no weight", "config.json of another model"],
    ),
    "no tokenizer": (
        model(lambda one: [file.unlink() for file in one.glob("tokenizer*")]),
        MODEL,
        ["no tokenizer", "save the model's own there"],
    ),
    "a model of another task": (
        given("--task", "causal-lm", "--text-column", "text"),
        MODEL,
        ["it is not a model for causal-lm"],
    ),
    "a classifier of other labels": (model(with_head), DATA, ["ham, spam", "data.label_names"]),
    "a truncated GGUF file": (truncated_gguf, MODEL, ["cut.gguf", "copy or download it again"]),
    "modules that are not there": (given("--target", "c_fc"), MODEL, ["'c_fc'", "known: attention"]),
    "a layer that is not there": (
        given("--target", "query", "--set", "method.layers=[9]"),
        MODEL,
        ["[9]", "layers 0 to 1"],
    ),
    "a text beyond the positions": (
        file("d.csv", GOOD + f"{'very ' * 100},good\n", "--model", "gpt2"),
        CONFIG,
        ["100 tokens", "--max-length 64"],
    ),
    "a tracker that is not installed": (given("--tracker", "clearml"), 6, ["clearml", "pip install clearml"]),
    "a tracker nobody knows": (given("--tracker", "abacus"), CONFIG, ["abacus", "wandb"]),
    "a rate that explodes": (
        given("--method", "full", "--learning-rate", "1e30"),
        9,
        ["loss at step", "--learning-rate"],
    ),
    # what goes on
    "nothing to go on with": (given("--resume", "absent"), CONFIG, ["--resume absent", "give the folder"]),
}


def test_there_are_more_than_thirty():
    assert len(FAULTS) > 30


def said(done, code, words):
    """Check what a user reads, and return it."""
    assert done.exit_code == code, done.output
    mistakes = [line for line in done.output.splitlines() if line.lower().startswith("error")]
    assert len(mistakes) == 1, done.output
    assert mistakes[0] == done.output.splitlines()[-1]
    assert [word for word in words if word not in mistakes[0]] == [], mistakes[0]
    assert "Traceback" not in done.output
    return mistakes[0]


@pytest.mark.parametrize("name", FAULTS)
def test_a_mistake_is_one_sentence_and_a_non_zero_exit(name, work, tmp_path, monkeypatch):
    monkeypatch.chdir(work)
    make, code, words = FAULTS[name]
    done = run(*flags(work, tmp_path / "out", *make(work, tmp_path)))
    said(done, code, words)
    assert not (tmp_path / "out" / "model").exists()


@pytest.fixture(scope="module")
def stopped(work, tmp_path_factory):
    """A run that was stopped when all its steps were taken, before it had saved its model."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    done = run(*flags(work, folder, "--max-steps", 4))
    assert done.exit_code == 0, done.output
    record = (folder / "record.jsonl").read_text().splitlines(keepends=True)
    (folder / "record.jsonl").write_text("".join(line for line in record if '"kind":"result"' not in line))
    shutil.rmtree(folder / "model")
    return folder


@pytest.fixture
def copy(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "run")


def test_a_run_that_was_stopped_after_its_last_step_saves_what_it_had_learned(copy):
    done = run("--resume", copy)
    assert done.exit_code == 0, done.output
    assert read_record(copy).result.num_steps == 4
    assert (copy / "model" / "adapter_model.safetensors").is_file()


CHECKPOINTS = {
    "truncated weights": (cut("trainable.safetensors", 500), [], ["trainable.safetensors", "an older checkpoint"]),
    "empty weights": (cut("trainable.safetensors", 0), [], ["trainable.safetensors", "an older checkpoint"]),
    "truncated moments": (cut("optimizer.safetensors", 500), [], ["optimizer.safetensors", "an older checkpoint"]),
    "a truncated state": (cut("state.json", 30), [], ["state.json", "an older checkpoint"]),
    "a missing file": (
        lambda one: (one / "optimizer.safetensors").unlink(),
        [],
        ["optimizer.safetensors is missing", "an older checkpoint"],
    ),
    "none at all": (shutil.rmtree, [], ["no checkpoint in", "start it again with --overwrite"]),
    "another rate": (lambda _: None, ["--learning-rate", "0.5"], ["optimizer.learning_rate", "resume with the same"]),
    "other data": (lambda _: None, ["--set", "data.max_train_samples=50"], ["max_train_samples", "the same"]),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_that_cannot_go_on_is_one_sentence_and_stays(name, copy):
    change, more, words = CHECKPOINTS[name]
    change(copy / "checkpoints" / "step-00000004")
    before = sorted(copy.rglob("*"))
    said(run("--resume", copy, *more), CHECKPOINT, words)
    assert sorted(copy.rglob("*")) == before


def test_a_run_that_is_finished_does_not_go_on(copy):
    assert run("--resume", copy).exit_code == 0
    said(run("--resume", copy), CHECKPOINT, ["is finished", "--output"])


def test_a_filled_folder_is_not_overwritten_unless_asked(copy, work):
    said(run(*flags(work, copy)), CONFIG, ["holds a run", "--overwrite"])


@pytest.mark.parametrize("limit", [300, 3000, 30_000, 70_000])
def test_a_disk_that_is_full_is_one_sentence_and_the_run_goes_on_when_there_is_room(limit, work, tmp_path):
    """A limit on the size of files stands for the disk: the kernel refuses what exceeds it, at any place of a file."""
    more = ["--max-steps", 6, "--set", "training.checkpoint_every=2", "--method", "full"]
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        done = run(*flags(work, tmp_path / "out", *more))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    said(done, DEVICE, ["cannot write", str(tmp_path / "out"), "File too large", "free some space"])
    assert not list((tmp_path / "out").rglob("*.tmp"))
