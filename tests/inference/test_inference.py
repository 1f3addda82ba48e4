"""A trained model answers texts, files and questions by the name of its run; what it answers is in test_forms.py."""

import csv
import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from ftkit.cli import main
from ftkit.config.files import load_config
from ftkit.inference.generate import Sampling, write
from ftkit.inference.opened import open_config, open_model
from ftkit.machine.process import ProcessContext
from ftkit.training.loop import train_run
from tests.helpers import WORDS, Notes


def ftkit(*arguments, given=None):
    ran = CliRunner().invoke(main, [str(one) for one in arguments], input=given)
    assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
    return ran


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
    assert "1 row has no text" in piped.stderr


def test_a_run_that_streamed_from_the_host_to_a_gpu_answers_on_a_cpu_from_the_disk(trained):
    folder, _ = trained("single", "lora")
    plain, streamed = (
        ftkit("predict", folder, "good film", "bad plot", *more) for more in ((), ("--set", "engine.stream_layers=ram"))
    )
    assert streamed.stdout == plain.stdout
    assert "here they come from the disk" in streamed.stderr


def test_a_file_that_lacks_a_class_is_scored_and_one_with_another_is_refused(trained, tmp_path):
    folder, _ = trained("single", "lora")
    file = tmp_path / "few.csv"
    file.write_text("text,label\ngood film,good\nbad film,bad\nfine good,good\n")
    told = ftkit("evaluate", folder, "--dataset", file)
    assert "no train row has the label" in told.stderr
    assert "little can be learned" not in told.stderr
    scored = json.loads(ftkit("evaluate", folder, "--dataset", file, "--json").stdout)
    assert scored["num_samples"] == 3
    other = tmp_path / "other.csv"
    other.write_text("1,yes,n\ngood film,good,7\nbad film,bad,8\nfine good,good,9\n")
    named = ("--text-column", "1", "--label-column", "yes")
    again = json.loads(ftkit("evaluate", folder, "--dataset", other, *named, "--json").stdout)
    assert again == scored | {"seconds": again["seconds"]}
    answered = csv.DictReader(ftkit("predict", folder, "--dataset", other, *named[:2]).stdout.splitlines())
    assert [row["text"] for row in answered] == ["good film", "bad film", "fine good"]
    assert [one["support"] for one in scored["per_label"]] == [1, 2, 0]
    file.write_text("text,label\ngood film,superb\nbad film,bad\n")
    ran = ftkit("evaluate", folder, "--dataset", file)
    assert ran.exit_code == 3
    assert "superb" in ran.stderr
    assert "leave rows with other labels out" in ran.stderr


def test_a_language_model_writes_and_chats(trained):
    folder, _ = trained("causal-lm", "lora")
    ran = ftkit("predict", folder, "the film", "--format", "jsonl", "--max-new-tokens", 4)
    (row,) = map(json.loads, ran.stdout.splitlines())
    assert row["prompt"] == "the film"
    assert set(row["answer"].split()) <= {*WORDS, ""}
    talk = ftkit("chat", folder, "--max-new-tokens", 3, given="good film\n/new\n/bye\n")
    assert talk.exit_code == 0


def test_what_is_written_ends_where_the_models_positions_end_and_that_is_told(trained):
    folder, _ = trained("causal-lm", "lora")  # of 64 positions
    flags = ("--max-new-tokens", 5, "--temperature", 100)  # at which it does not end by itself
    asked = ftkit("predict", folder, "good " * 62, "the film", *flags)
    assert asked.exit_code == 0
    assert "answers are cut, at --max-new-tokens 5 or where the model's positions end" in asked.stderr
    too_long = ftkit("predict", folder, "film", "good " * 64, *flags)
    assert too_long.exit_code == 2
    assert "line 2: the prompt has 64 tokens, and the model has 64 positions" in too_long.stderr
    lines = "good " * 64 + "\n/help\n" + "good " * 62 + "\n"
    talk = ftkit("chat", folder, *flags, "--top-p", 1, given=lines)
    assert talk.exit_code == 0
    assert "the model has 64 positions" in talk.stderr
    assert "there is no /help: /new begins anew" in talk.stderr
    assert "(cut after 2 tokens" in talk.stderr


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals here")
def test_a_line_of_a_terminal_can_be_edited_and_ctrl_c_stops_an_answer_and_not_the_chat(trained):
    folder, _ = trained("causal-lm", "lora")
    end, terminal = os.openpty()
    words = ["chat", str(folder), "--max-new-tokens", "40"]
    code = f"{STOPPED_ONCE}\nmain({words})"
    ran = subprocess.Popen([sys.executable, "-c", code], stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    said = b""
    for typed in (b"filn\x1b[D\x1b[3~m\n", b"the plot\n", b"/bye\n"):
        said += until(end, b"> ", typed)
    said += until(end, None, b"")
    assert ran.wait(60) == 0, said
    os.close(end)
    assert b"asked 'film'" in said
    assert b"stopped; this turn is left out" in said
    assert b"asked 'the plot'" in said


STOPPED_ONCE = """
import signal
import ftkit.inference.generate as generate
from ftkit.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests behind has it ignored
write, asked = generate.write, []
def first_stopped(opened, messages, sampling, streamer):
    print("asked", repr(messages[-1]["content"]), flush=True)
    asked.append(messages)
    if len(asked) == 1:
        signal.raise_signal(signal.SIGINT)
    return write(opened, messages, sampling, streamer)
generate.write = first_stopped
"""


def until(terminal, prompt, typed):
    """Return what a terminal shows until a prompt comes, and then type; None: until the program ends."""
    said = b""
    while prompt is None or prompt not in said:
        try:
            said += os.read(terminal, 4096)
        except OSError:  # Linux says so where the other end is closed
            break
    if typed:
        os.write(terminal, typed)
    return said


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
        *(f"output.folder={folder}", "training.max_steps=1", "output.reopen=false"),
        *("data.validation_share=0", "data.test_share=0"),
    ]
    train_run(load_config(settings=settings), ProcessContext(), Notes())
    assert '"content": [{"type": "text", "text": "Hello!"}]' in (folder / "README.md").read_text()
    opened, heard = open_model(str(folder), open_config(str(folder), ())), Heard()
    write(opened, messages[:1], Sampling(max_new_tokens=1), heard)
    assert opened.tokenizer.decode(heard.said[0]).endswith("the film")


def test_a_line_of_standard_input_is_a_text_whatever_breaks_it_holds(trained):
    folder, _ = trained("single", "lora")
    piped = "good\u2028film\x85plot\x0cbad\r\n\nbad film\n"
    ran = ftkit("predict", folder, "--format", "jsonl", given=piped)
    rows = [json.loads(line) for line in ran.stdout.split("\n")[:-1]]
    assert [(row["row"], row["text"]) for row in rows] == [
        ("standard input, line 1", "good\u2028film\x85plot\x0cbad"), ("standard input, line 3", "bad film")
    ]  # fmt: skip
    assert "1 row has no text, and no answer" in ran.stderr
    ran = ftkit("predict", folder, given="film\ncaf\xe9".encode("cp1252"))
    assert ran.exit_code == 3
    assert "standard input, line 2 is not UTF-8" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["predict", "nowhere/at/all", "a"], 4, "there is no folder"),
        (["predict", "", "a"], 2, "'RUN': it is empty"),
        (["predict", "RUN", "a", "--output", f"{__file__}/out.csv"], 2, "cannot write"),
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
