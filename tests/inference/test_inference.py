"""A trained model answers by the name of its run exactly what it answered when it was scored."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from ftkit.cli import main
from ftkit.config.files import load_config
from ftkit.inference.generate import Sampling, write
from ftkit.inference.opened import open_config, open_model
from ftkit.machine.process import ProcessContext
from ftkit.records.answers import answers_file, read_answers
from ftkit.training.loop import train_run
from tests.helpers import WORDS, Notes, save_tiny_model

KINDS = {
    "single": lambda words: "good" if "good" in words else "bad" if "bad" in words else "neither",
    "multi": lambda words: [name for name in ("film", "good", "plot") if name in words],
    "regression": lambda words: 20.25 + 3 * ("good" in words) - 4 * ("bad" in words) + len(words) / 2,
}
CASES = [("single", method) for method in ("feature-extraction", "lora", "qlora", "full")]
CASES += [("multi", "lora"), ("regression", "full"), ("causal-lm", "lora"), ("causal-lm", "full")]
ROUNDING = 1e-6
"""A last layer that is computed at one place multiplies matrices of a few rows, whose sums the library takes in another
order from one model to the next: some roundings of fp32, 6e-8 each."""
SPLITS = {"train": 24, "validation": 12, "test": 16}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder of tiny models, and of data for every kind of labels."""
    folder, random = tmp_path_factory.mktemp("work"), np.random.default_rng(0)
    for family in ("bert", "gpt2"):
        save_tiny_model(folder / family, family)
    for split, size in SPLITS.items():
        rows = [random.choice(WORDS, size=random.integers(2, 9)).tolist() for _ in range(size)]
        for kind in (*KINDS, "causal-lm"):
            (folder / kind).mkdir(exist_ok=True)
            label = KINDS.get(kind, lambda _: "unread")
            lines = [json.dumps({"text": " ".join(words), "label": label(words)}) for words in rows]
            (folder / kind / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def trained(work):
    """Return the folder and the record of a run, trained when it is first asked for."""
    done = {}

    def train(kind, method):
        if (kind, method) not in done:
            folder = work / f"run-{kind}-{method}"
            task = "causal-lm" if kind == "causal-lm" else "sequence-classification"
            settings = [
                *(f"task={task}", f"method.name={method}", f"model.name={work / ('gpt2' if kind == task else 'bert')}"),
                *(
                    f"data.dataset={work / kind}",
                    f"output.folder={folder}",
                    "training.max_steps=4",
                    "output.reopen=false",
                ),
                *(
                    "training.eval_every=2",
                    "data.max_length=32",
                    "batch.global_batch_size=8",
                    "training.plan_first=false",
                ),
                *("model.precision=fp32", "optimizer.learning_rate=0.01", "data.max_length=32"),
                # What the frozen layers made once has the last bits of other micro-batches: it is equal up to rounding.
                "cache.trunk=off",
                *(["data.standardize_targets=true"] if kind == "regression" else []),
            ]
            done[kind, method] = folder, train_run(load_config(settings=settings), ProcessContext(), Notes())
        return done[kind, method]

    return train


def ftkit(*arguments, given=None):
    ran = CliRunner().invoke(main, [str(one) for one in arguments], input=given)
    assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
    return ran


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_evaluate_gives_the_recorded_scores_of_the_test_split(kind, method, trained, work, tmp_path):
    folder, record = trained(kind, method)
    keeps = [] if kind == "causal-lm" else ["--output", tmp_path / "answers.jsonl"]
    ran = ftkit("evaluate", folder, "--json", *keeps)
    found, recorded = json.loads(ran.stdout), json.loads(record.last_evaluation("test").model_dump_json())
    timed = {"seconds", "kind", "step", "epoch"}
    for figure in ("loss", "perplexity", "pearson", "rmse", "mae"):
        # A correlation is of what is left when a mean is taken off, here a thousandth, so that roundings count more.
        rounding = 1000 * ROUNDING if figure == "pearson" else ROUNDING
        assert found.pop(figure) == (recorded[figure] and pytest.approx(recorded[figure], rel=rounding))
        del recorded[figure]
    assert {name: value for name, value in found.items() if name not in timed} == {
        name: value for name, value in recorded.items() if name not in timed
    }
    if keeps:
        mine, theirs = read_answers(tmp_path / "answers.jsonl"), read_answers(answers_file(folder, "test"))
        assert mine.texts == theirs.texts
        np.testing.assert_allclose(mine.answers, theirs.answers, rtol=ROUNDING if kind == "regression" else 0)


@pytest.mark.parametrize(("kind", "method"), [case for case in CASES if case[0] != "causal-lm"])
def test_predict_gives_the_recorded_answers_of_a_file_without_labels(kind, method, trained, work, tmp_path):
    folder, _ = trained(kind, method)
    rows = [json.loads(line) for line in (work / kind / "test.jsonl").read_text().splitlines()]
    bare, out = tmp_path / "bare.csv", tmp_path / "out.parquet"
    bare.write_text("text\n" + "".join(f"{row['text']}\n" for row in rows))
    assert ftkit("predict", folder, "--dataset", bare, "--output", out).exit_code == 0
    table, kept = pq.read_table(out).to_pydict(), read_answers(answers_file(folder, "test"))
    assert table["text"] == [row["text"] for row in rows]
    if kind == "regression":
        np.testing.assert_allclose(table["label"], kept.answers, rtol=ROUNDING)
        return
    shares = np.stack([table[f"probability_{name}"] for name in kept.names], axis=1)
    np.testing.assert_allclose(shares, kept.probabilities, atol=ROUNDING)
    if kind == "single":
        assert table["label"] == [kept.names[answer] for answer in kept.answers]
    else:
        assert table["label"][0] == [name for name, has in zip(kept.names, kept.answers[0], strict=True) if has]


def test_texts_of_the_command_line_and_of_standard_input_are_answered_alike(trained):
    folder, _ = trained("single", "lora")
    texts = ["good film", "bad plot, they said"]
    named = list(csv.DictReader(ftkit("predict", folder, *texts).stdout.splitlines()))
    piped = ftkit("predict", folder, "--format", "jsonl", given="\n".join([texts[0], "", texts[1]]))
    rows = [json.loads(line) for line in piped.stdout.splitlines()]
    assert [row["text"] for row in named] == [row["text"] for row in rows] == texts
    assert [row["label"] for row in named] == [row["label"] for row in rows]
    assert [float(row["probability_good"]) for row in named] == [row["probability_good"] for row in rows]
    assert rows[1]["row"] == "standard input, line 3"
    assert "1 rows have no text" in piped.stderr


def test_a_file_that_lacks_a_class_is_scored_and_one_with_another_is_refused(trained, tmp_path):
    folder, _ = trained("single", "lora")
    file = tmp_path / "few.csv"
    file.write_text("text,label\ngood film,good\nbad film,bad\nfine good,good\n")
    scored = json.loads(ftkit("evaluate", folder, "--dataset", file, "--json").stdout)
    assert scored["num_samples"] == 3
    assert [one["support"] for one in scored["per_label"]] == [1, 2, 0]
    file.write_text("text,label\ngood film,superb\nbad film,bad\n")
    ran = ftkit("evaluate", folder, "--dataset", file)
    assert ran.exit_code == 3
    assert "superb" in ran.stderr


def test_numbers_of_another_file_are_scored_in_the_units_of_the_run(trained, work):
    folder, record = trained("regression", "full")
    scored = json.loads(ftkit("evaluate", folder, "--dataset", work / "regression" / "test.jsonl", "--json").stdout)
    assert scored["rmse"] == pytest.approx(record.last_evaluation("test").rmse, rel=ROUNDING)


def test_a_saved_model_without_its_run_is_opened_too(trained, work, tmp_path):
    folder, record = trained("single", "full")
    copied = tmp_path / "copied"
    (folder / "model").rename(copied)
    try:
        scored = json.loads(ftkit("evaluate", copied, "--dataset", work / "single" / "test.jsonl", "--json").stdout)
    finally:
        copied.rename(folder / "model")
    assert scored["accuracy"] == record.last_evaluation("test").accuracy


def test_a_language_model_writes_and_chats(trained):
    folder, _ = trained("causal-lm", "lora")
    ran = ftkit("predict", folder, "the film", "--format", "jsonl", "--max-new-tokens", 4)
    (row,) = map(json.loads, ran.stdout.splitlines())
    assert row["prompt"] == "the film"
    assert set(row["answer"].split()) <= {*WORDS, ""}
    talk = ftkit("chat", folder, "--max-new-tokens", 3, given="good film\n/new\n/bye\n")
    assert talk.exit_code == 0


class Heard:
    """A streamer that keeps what it is told; the prompt comes first."""

    def __init__(self):
        self.said = []

    def put(self, tokens):
        self.said.append(tokens.flatten().tolist())

    def end(self):
        pass


def test_a_chat_whose_template_wants_contents_in_parts_is_asked_in_parts(work, tmp_path):
    template, chats, folder = tmp_path / "template.jinja", tmp_path / "chats.jsonl", tmp_path / "run"
    template.write_text(
        "{% for m in messages %}{{ m.role }} {% for part in m.content %}{{ part.text }} {% endfor %}{% endfor %}"
    )
    messages = [{"role": "user", "content": "the film"}, {"role": "assistant", "content": "good"}]
    chats.write_text("".join(json.dumps({"messages": messages}) + "\n" for _ in range(8)))
    settings = [
        *("task=causal-lm", f"model.name={work / 'gpt2'}", f"data.dataset={chats}", f"data.chat_template={template}"),
        *(f"output.folder={folder}", "training.max_steps=1", "data.validation_share=0", "data.test_share=0"),
    ]
    train_run(load_config(settings=settings), ProcessContext(), Notes())
    assert '"content": [{"type": "text", "text": "Hello!"}]' in (folder / "README.md").read_text()
    opened, heard = open_model(str(folder), open_config(str(folder), ())), Heard()
    write(opened, messages[:1], Sampling(max_new_tokens=1), heard)
    assert opened.tokenizer.decode(heard.said[0]).endswith("the film")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["predict", "nowhere/at/all", "a"], 4, "there is no folder"),
        (["predict", "RUN", "a", "--dataset", "b.csv"], 2, "give one of them"),
        (["predict", "RUN", "a", "--output", "out.txt"], 2, "end the name in .csv"),
        (["predict", "RUN", "--dataset", "absent.csv"], 3, "absent.csv"),
        (["predict", "RUN", "a", "--format", "parquet"], 2, "--output"),
        (["predict", "RUN", " "], 3, "no text"),
        (["evaluate", "RUN", "--set", "data.nosuch=1"], 2, "nosuch"),
        (["chat", "RUN"], 2, "ftkit predict"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_code(arguments, code, said, trained):
    folder, _ = trained("single", "lora")
    ran = ftkit(*(str(folder) if one == "RUN" else one for one in arguments))
    assert ran.exit_code == code, ran.output
    assert said in ran.stderr
    assert "Traceback" not in ran.output
