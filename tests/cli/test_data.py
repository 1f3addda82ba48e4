"""`ftkit data`: what it shows, and its exit codes; the models have a tokenizer and no weights."""

import json

import pytest
import transformers
from click.testing import CliRunner

from ftkit.cli import main
from tests.made_tokenizers import byte_level, word_piece


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    byte_level().save_pretrained(folder)
    transformers.LlamaConfig().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    word_piece().save_pretrained(folder)
    transformers.BertConfig().save_pretrained(folder)
    return folder


@pytest.fixture
def chats(tmp_path):
    path = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "Hi\x1b[31m"}, {"role": "assistant", "content": "Hello\nthere"}]
    path.write_text("".join(json.dumps({"messages": turns, "id": n}) + "\n" for n in range(3)))
    return path


@pytest.fixture
def reviews(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text(
        "text,label\n" + "".join(f"{'the cat ' * (n + 3)},{'good' if n % 2 else 'bad'}\n" for n in range(40))
    )
    return path


def run(*words, shares=("--set", "data.validation_share=0", "--set", "data.test_share=0")):
    return CliRunner().invoke(main, ["data", *map(str, words), *shares])


def test_a_chat_is_shown_with_its_targets_marked(chats, chat_model):
    done = run(chats, "--model", chat_model)
    assert done.exit_code == 0
    assert "task: causal-lm, by its columns" in done.output
    assert "train: 3 rows of messages (objects or mixed values), id (whole numbers)" in done.output
    assert "⟦Hello\n  there<|im_end|>⟧" in done.output
    assert "note: columns that nothing reads: 'id'" in done.output


def test_control_characters_of_a_text_do_not_reach_the_terminal(chats, chat_model):
    done = run(chats, "--model", chat_model)
    assert "\x1b" not in done.output
    assert r"Hi\x1b[31m" in done.output


def test_classes_lengths_and_labels_are_shown(reviews, text_model):
    done = run(reviews, "--model", text_model, "--max-length", "6", "--rows", "2", shares=())
    assert done.exit_code == 0
    assert "bad 16, good 16" in done.output
    assert "label 'bad'" in done.output or "label 'good'" in done.output
    assert "validation, tokens of a text before it is cut" in done.output
    assert "warning: train: 100.0% of the texts are cut at max_length; --max-length " in done.output


def test_labels_of_another_head_are_refused_unless_a_new_one_is_drawn(reviews, tmp_path):
    word_piece().save_pretrained(tmp_path)
    names = {0: "left", 1: "right"}
    kinds = ["BertForSequenceClassification"]
    transformers.BertConfig(architectures=kinds, id2label=names).save_pretrained(tmp_path)
    refused = run(reviews, "--model", tmp_path)
    assert (refused.exit_code, "--set model.new_head=true" in refused.output) == (3, True)
    assert run(reviews, "--model", tmp_path, "--set", "model.new_head=true").exit_code == 0


def test_warnings_fail_where_that_is_wanted(reviews, text_model):
    assert run(reviews, "--model", text_model, "--max-length", "6", "--strict").exit_code == 3
    assert run(reviews, "--model", text_model, "--strict").exit_code == 0


def test_data_that_cannot_be_used_exits_with_3_after_what_was_found(chats, chat_model):
    chats.write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n')
    done = run(chats, "--model", chat_model)
    assert done.exit_code == 3
    assert "train: 1 row of messages" in done.output
    assert "error: train split: " in done.output
    assert "chats.jsonl, line 1 has no assistant's answer" in done.output


def test_what_else_was_found_is_told_with_an_error(tmp_path, text_model):
    path = tmp_path / "reviews.csv"
    path.write_text("text,label\n" + "".join(f"the cat {n},{('good', 'GOOD', 'bad')[n % 3]}\n" for n in range(9)))
    done = run(path, "--model", text_model, shares=())
    assert done.exit_code == 3
    assert "error: data.validation_share=0.1 of 9 rows is 1 for 3 labels" in done.output
    assert "warning: the labels 'GOOD', 'good' differ in spelling alone" in done.output


def test_rows_without_a_label_do_not_hide_what_else_is_wrong(tmp_path, text_model):
    path = tmp_path / "reviews.csv"
    path.write_text("text,label\n" + "".join(f"the cat {n},{('good', 'bad')[n % 2]}\n" for n in range(30)) + "a dog,\n")
    done = run(path, "--model", text_model, "--max-length", "4")
    assert done.exit_code == 3
    assert "error: " in done.output
    assert "leave them out with --set data.unlabelled=drop" in done.output
    assert "warning: train: 100.0% of the texts are cut at max_length" in done.output
    assert run(path, "--model", text_model, "--set", "data.unlabelled=drop").exit_code == 0


def test_the_advice_on_pairs_of_preferences_can_be_followed(tmp_path, chat_model):
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Hello {n}", "chosen": f"Oslo {n}", "rejected": "No"} for n in range(9)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    refused = run(path, "--model", chat_model, shares=())
    assert refused.exit_code == 3
    flags = refused.output.partition("are not trained; ")[2].partition(" trains on")[0].split()
    assert flags[:2] == ["--task", "causal-lm"]
    assert run(path, "--model", chat_model, *flags).exit_code == 0


def test_json_has_all_of_it(chats, chat_model):
    known = json.loads(run(chats, "--model", chat_model, "--json", "--rows", "1").output)
    assert known["task"] == "causal-lm"
    assert known["rows"] == {"train": 3}
    assert known["sequences"][0]["parts"][1] == ["Hello\nthere<|im_end|>", True]
    assert [finding["text"] for finding in known["findings"]] == [
        "train: 2 rows have the text of an earlier one",
        "columns that nothing reads: 'id'",
    ]
    chats.write_text('{"messages": []}\n')
    (finding,) = json.loads(run(chats, "--model", chat_model, "--json").output)["findings"]
    assert finding["severity"] == "error"


def test_a_missing_file_is_a_sentence():
    done = run("nowhere.csv")
    assert done.exit_code == 3
    assert "no file nowhere.csv" in done.output


def test_two_columns_that_training_tells_apart_by_what_they_hold_are_shown_as_labels(text_model, tmp_path):
    rows = [f"A film seen on day {day},{('no', 'yes')[day % 2]}" for day in range(40)]
    (tmp_path / "sheet.csv").write_text("\n".join(["Review,Verdict", *rows]) + "\n")
    done = CliRunner().invoke(main, ["data", str(tmp_path / "sheet.csv"), "--model", str(text_model)])
    assert "task: sequence-classification, by its columns" in done.output
    assert "text 'Review', label 'Verdict': one of 2 classes" in done.output


def test_a_page_has_what_the_terminal_has_and_texts_stay_texts(text_model, tmp_path):
    data, page = tmp_path / "reviews.csv", tmp_path / "page.html"
    rows = "".join(f"the <img src=x onerror=alert({n})> cat,{'<b>good</b>' if n % 2 else 'bad'}\n" for n in range(40))
    data.write_text("text,label\n" + rows)
    done = run(data, "--model", text_model, "--max-length", "8", "--html", page, shares=())
    assert done.exit_code == 0, done.output
    shown = page.read_text()
    assert "<img" not in shown
    assert "<b>good" not in shown
    assert "&lt;b&gt;good&lt;/b&gt;" in shown
    assert "cut at max_length" in shown
    findings = [line for line in done.stdout.splitlines() if line.startswith("warning: ")]
    assert all(one.removeprefix("warning: ").partition(";")[0] in shown for one in findings)
    assert all(f"{split}, up to" in shown for split in ("train", "validation", "test"))


def test_the_targets_of_a_chat_are_marked_on_the_page(chats, chat_model, tmp_path):
    page = tmp_path / "page.html"
    assert run(chats, "--model", chat_model, "--html", page).exit_code == 0
    assert "<mark>Hello\nthere&lt;|im_end|&gt;</mark>" in page.read_text()
    assert "\x1b" not in page.read_text()


def test_data_that_is_refused_has_a_page_with_the_reason(reviews, text_model, tmp_path):
    page = tmp_path / "page.html"
    assert run(reviews, "--model", text_model, "--label-column", "nosuch", "--html", page).exit_code == 3
    assert "is not a column" in page.read_text()


def test_a_page_does_not_take_the_place_of_data(reviews, text_model):
    before = reviews.read_text()
    done = run(reviews, "--model", text_model, "--html", reviews)
    assert done.exit_code == 2
    assert "end the name in .html" in done.output
    assert reviews.read_text() == before


def test_a_long_text_is_shown_window_by_window(reviews, text_model):
    done = run(reviews, "--model", text_model, "--max-length", "8", "--set", "data.long_texts=windows")
    assert "train 2, window 1 of 2: " in done.output
    assert "read in windows" in done.output


def test_texts_that_are_nearly_the_same_are_shown_side_by_side_and_escaped_on_the_page(text_model, tmp_path):
    words = [f"word{number}" for number in range(30)]
    texts = [words, [*words, "<b>end</b>\x1b[31m"], [*reversed(words)]]
    path = tmp_path / "films.jsonl"
    path.write_text(
        "".join(json.dumps({"text": " ".join(text), "label": n % 2}) + "\n" for n, text in enumerate(texts))
    )
    page = tmp_path / "page.html"
    done = run(path, "--model", text_model, "--html", page)
    assert "nearly the same: train and train" in done.output
    assert "<b>end</b>" in done.output
    assert "\x1b" not in done.output
    assert "note: train: 1 row nearly the same as an earlier one, such as" in done.output
    written = page.read_text()
    assert "&lt;b&gt;end&lt;/b&gt;" in written
    assert "<b>end" not in written
    (found,) = json.loads(run(path, "--model", text_model, "--json").output)["near"]
    assert [(pair["row"].split("/")[-1], pair["other"].split("/")[-1]) for pair in found["pairs"]] == [
        ("films.jsonl, line 2", "films.jsonl, line 1")
    ]
