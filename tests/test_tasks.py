"""The commands of the pages of tasks are the program's own, and run."""

import csv
import json
import random
import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ftkit.cli import main

PAGES = sorted((Path(__file__).resolve().parents[1] / "docs" / "tasks").glob("*.md"))
COMMAND = re.compile(r"^(?:\$ )?(?:ftkit|deepspeed launch/train\.py) (?:[^\n\\]|\\\n)*", re.MULTILINE)
QUICK = {"train": ["--max-steps", "3", "--max-length", "16"], "compare": ["--max-steps", "3", "--max-length", "16"]}
"""What is added so that a command ends soon; all else of it is run as it stands."""
NO_FIT = 8


def commands(page, *, shown_run):
    """Return the commands of a page as lists of words: all of them, or those that it shows being run."""
    blocks = re.findall(r"```(console|bash)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    texts = [found for kind, block in blocks if kind == "console" or not shown_run for found in COMMAND.findall(block)]
    words = [shlex.split(text.removeprefix("$ ").replace("\\\n", " ")) for text in texts]
    return [one[1:] if one[0] == "ftkit" else ["train", *one[2:]] for one in words]


def files(folder):
    """Write the files that the pages speak of."""
    import openpyxl

    random.seed(0)
    words = {"yes": ["good", "great", "fine", "moving"], "no": ["bad", "dull", "poor", "silly"]}
    labels = [random.choice(["yes", "no"]) for _ in range(120)]
    texts = [f"A {random.choice(words[one])} film, seen on day {day}" for day, one in enumerate(labels)]
    book = openpyxl.Workbook()
    book.active.append(["Review", "Verdict", "Date"])
    for text, label in zip(texts, labels, strict=True):
        book.active.append([text, label, "2024-01-01"])
    book.save(folder / "reviews.xlsx")
    with (folder / "unlabelled.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["Review"], *([text] for text in texts[:10])])
    chats = [
        [{"role": "user", "content": f"Was {text} right?"}, {"role": "assistant", "content": f"It was: {label}."}]
        for text, label in zip(texts, labels, strict=True)
    ]
    (folder / "chats.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for chat in chats), encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_has_flags_that_there_are(page):
    found = commands(page, shown_run=False)
    assert found
    for name, *arguments in found:
        command = main.get_command(click.Context(main), name)
        assert command is not None, name
        command.make_context(name, list(arguments))  # raises of an unknown flag or choice


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_that_a_page_shows_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files(tmp_path)
    for name, *arguments in commands(page, shown_run=True):
        done = CliRunner().invoke(main, [name, *arguments, *QUICK.get(name, [])])
        # "It does not fit" asks for plans that do not.
        assert done.exit_code in ((0, NO_FIT) if name == "plan" else (0,)), done.output
