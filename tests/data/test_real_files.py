"""Tables and folders as people have them: read without an option, or refused by a sentence that works when followed."""

import csv
import io
import json

import openpyxl
import pyarrow as pa
import pyarrow.parquet
import pytest
from click.testing import CliRunner

from ftkit.cli import main
from ftkit.config.files import load_config
from ftkit.data.findings import Severity
from ftkit.data.prepare import prepare_data
from ftkit.errors import DataError

ADJECTIVES = {"good": ("lovely", "great", "charming"), "bad": ("dull", "awful", "boring")}
ROWS = [
    (f"The café no {number} was {ADJECTIVES[label][number % 3]}, said Zoë", label)
    for number, label in enumerate(("good", "bad") * 30)
]


def table(rows, names=("text", "label"), separator=",", encoding="utf-8", before=""):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator, lineterminator="\r\n")
    writer.writerows([names, *rows] if names else rows)
    return (before + out.getvalue()).encode(encoding)


def workbook(*sheets, merged=()):
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets:
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
        for cells in merged:
            sheet.merge_cells(cells)
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def parquet(rows):
    out = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"sentence": [text for text, _ in rows], "label": [y for _, y in rows]}), out)
    return out.getvalue()


NUMBERED = [(number, text, label) for number, (text, label) in enumerate(ROWS)]
READ = {
    "commas.csv": table(ROWS),
    "byte order mark.csv": table(ROWS, encoding="utf-8-sig"),
    "tabs.tsv": table(ROWS, separator="\t"),
    "German Excel.csv": table(ROWS, ("Rezension", "Kategorie"), ";"),
    "Excel names the separator.csv": table(ROWS, separator=";", before="sep=;\r\n"),
    "numbered.csv": table(NUMBERED, ("id", "text", "label")),
    "a form's answers.csv": table(
        [(number, "2026-01-02 10:11", text, "a@b.org", label, 3) for number, text, label in NUMBERED],
        ("Nr", "Time", "Message", "Mail", "Sentiment", "n"),
    ),
    "line breaks in cells.csv": table([(text.replace(" was", "\nwas"), label) for text, label in ROWS]),
    "empty columns and rows.csv": table([(*row, "", "") for row in ROWS], ("text", "label", "", ""))
    + b",,,\r\n,,,\r\n",
    "stars.csv": table([(text, 5 if label == "good" else 1) for text, label in ROWS], ("review", "stars")),
    "spaces behind labels.csv": table([(text, f"{label}  "[: 4 + n % 3]) for n, (text, label) in enumerate(ROWS)]),
    "rows twice and without text.csv": table([*ROWS, *ROWS[:5], ("", "good"), ("   ", "bad")]),
    "a list.json": json.dumps([{"text": text, "label": label} for text, label in ROWS]).encode(),
    "lines.jsonl": "\n".join(json.dumps({"text": text, "label": label}) for text, label in ROWS).encode(),
    "table.parquet": parquet(ROWS),
    "sheet.xlsx": workbook(("Reviews", [("Text", "Label"), *ROWS])),
    "an empty second sheet.xlsx": workbook(("Reviews", [("Text", "Label"), *ROWS]), ("Sheet2", [])),
    "merged cells.xlsx": workbook(
        ("R", [("Label", "Text"), *sorted((label, text) for text, label in ROWS)]), merged=("A2:A31", "A32:A61")
    ),
    "true and false.xlsx": workbook(("R", [("Text", "Lovely?"), *[(text, label == "good") for text, label in ROWS]])),
    "days as labels.csv": table([(text, f"2026-01-0{1 + (label == 'good')}") for text, label in ROWS]),
    "spaces that do not break.csv": table([(text, label + "\xa0" * (n % 2)) for n, (text, label) in enumerate(ROWS)]),
    "title and body.csv": table([(text[:9], text, label) for text, label in ROWS], ("title", "body", "label")),
    "files of a Mac and of Windows": {
        **{f"{label}/{number}.txt": text.encode() for number, text, label in NUMBERED},
        **dict.fromkeys((".DS_Store", "Thumbs.db", "good/.DS_Store", "good/._1.txt", "__MACOSX/good/._1.txt"), b"\0"),
    },
    "class folders": {f"{label}/{number}.txt": text.encode() for number, text, label in NUMBERED},
    "splits": {"train.csv": table(ROWS[:40]), "test.csv": table(ROWS[40:])},
}
"""Read without an option."""

REFUSED = {
    "Windows.csv": (table(ROWS, encoding="cp1252"), ["data.encoding=cp1252"]),
    "Excel's Unicode.tsv": (table(ROWS, separator="\t", encoding="utf-16"), ["data.encoding=utf-16"]),
    "two sheets.xlsx": (
        workbook(("Reviews", [("Text", "Label"), *ROWS]), ("notes", [("mine",)])),
        ["data.subset=Reviews"],
    ),
    "an empty label.csv": (table([*ROWS, ("Another café", "")]), ["data.unlabelled=drop"]),
    "nested.jsonl": (
        "\n".join(json.dumps({"data": {"text": text}, "meta": {"label": label}}) for text, label in ROWS).encode(),
        ["data.label_column=meta.label", "data.text_column=data.text"],
    ),
    "pairs.csv": (
        table([(text, text[::-1], label) for text, label in ROWS], ("question1", "question2", "is_duplicate")),
        ["data.label_column=is_duplicate"],
    ),
}
"""Refused: with the settings that follow the sentences, one a sentence."""

MENDED = {
    "a title.csv": (table(ROWS, before="Reviews of 2026\r\nmade today\r\n"), "remove them", table(ROWS)),
    "a title.xlsx": (
        workbook(("Reviews", [("Reviews of 2026",), (), ("Text", "Label"), *ROWS])),
        "nothing above it",
        workbook(("Reviews", [("Text", "Label"), *ROWS])),
    ),
    "no header.csv": (table(ROWS, None), "must begin with a header line", table(ROWS)),
}
"""Refused, with words of the sentence, and the file as it says that it should be."""


TOLD = {
    "no value.csv": ([*ROWS, ("One more", "#N/A"), ("And one", "n/a")], ["'#N/A', 'n/a'", "data.unlabelled=drop"]),
    "another case.csv": ([*ROWS[:40], *[(text, label.upper()) for text, label in ROWS[40:]]], ["'BAD', 'bad'"]),
    "some have two labels.csv": ([*ROWS[:57], *[(text, f"{label};loud") for text, label in ROWS[57:]]], ["_separator"]),
    "a row of totals.csv": ([*ROWS, ("Total", "60")], ["training rows: 60 1"]),
    "points before thousands.csv": ([(text, f"{n + 2}.{n:03}") for n, text, _ in NUMBERED], ["'2.000' is 2"]),
}
"""Read, with a warning: rows of text and label, and its words."""

UNUSABLE = {
    "percent.csv": (table([(text, f"{n} %") for n, text, _ in NUMBERED], ("text", "score")), "without units"),
    "commas before thousands.csv": (table([(text, f"{1000 + n:,}") for n, text, _ in NUMBERED]), "decimal comma"),
    "a cell with an error.xlsx": (workbook(("R", [("Text", "Label"), *ROWS, ("One", "#N/A")])), "row 62 has the error"),
    "packed.zip": (b"PK", "unzip it"),
    "a Mac's.numbers": (b"PK", "export it as CSV"),
}
"""Refused, with words of the sentence."""


@pytest.fixture(scope="module")
def tokenizer(minilm):
    return minilm


def write(folder, name, content):
    for path, part in ({name: content} if isinstance(content, bytes) else content).items():
        file = folder / path if isinstance(content, bytes) else folder / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(part)
    return folder / name


def run(*words):
    return CliRunner().invoke(main, [*map(str, words)])


def labels_of(path, tokenizer, settings=()):
    config = load_config(settings=[f"data.dataset={path}", *settings])
    data = prepare_data(config.data, config.task, tokenizer, 0)
    assert sum(len(split) for split in data.splits) == len(ROWS)
    return data.label_names


@pytest.mark.parametrize("name", READ)
def test_a_table_as_people_have_it_is_read_without_an_option(name, tokenizer, tmp_path):
    known = {("bad", "good"), ("1", "5"), ("false", "true"), ("2026-01-01", "2026-01-02")}
    assert labels_of(write(tmp_path, name, READ[name]), tokenizer) in known


@pytest.mark.parametrize("name", TOLD)
def test_what_may_be_meant_otherwise_is_a_warning(name, tokenizer, tmp_path):
    rows, words = TOLD[name]
    config = load_config(settings=[f"data.dataset={write(tmp_path, name, table(rows))}"])
    report = prepare_data(config.data, config.task, tokenizer, 0).report
    warnings = [one.line() for one in report.all_findings() if one.severity is Severity.WARNING]
    assert any(all(word in line for word in words) for line in warnings), warnings


def test_the_titles_of_texts_are_read_too_as_the_note_says(tokenizer, tmp_path):
    path = write(tmp_path, "mail.csv", READ["title and body.csv"])
    config = load_config(settings=[f"data.dataset={path}"])
    cure = next(one.cure for one in prepare_data(config.data, config.task, tokenizer, 0).report.all_findings())
    named = [word for word in cure.split() if "=" in word]
    assert named == ["data.text_column=body", "data.text_pair_column=title"]
    config = load_config(settings=[f"data.dataset={path}", *named])
    report = prepare_data(config.data, config.task, tokenizer, 0).report
    assert report.columns == {"text": "body", "pair": "title", "label": "label"}


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_cannot_be_meant_is_refused_by_what_it_is(name, tokenizer, tmp_path):
    content, words = UNUSABLE[name]
    with pytest.raises(DataError, match=words):
        labels_of(write(tmp_path, name, content), tokenizer)


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_refusal_says_works_when_it_is_followed(name, tokenizer, tmp_path):
    content, cures = REFUSED[name]
    path = write(tmp_path, name, content)
    for number, cure in enumerate(cures):
        with pytest.raises(DataError) as refused:
            labels_of(path, tokenizer, cures[:number])
        key, _, value = cure.partition("=")
        flag = f"--{key.partition('.')[2].replace('_', '-')} "
        assert key in str(refused.value) or flag in str(refused.value).replace(";", " ")
        assert value in str(refused.value)
    assert labels_of(path, tokenizer, cures) == ("bad", "good")


@pytest.mark.parametrize("name", MENDED)
def test_what_is_wrong_with_a_file_is_said_so_that_it_can_be_mended(name, tokenizer, tmp_path):
    content, words, mended = MENDED[name]
    with pytest.raises(DataError, match=words):
        labels_of(write(tmp_path, name, content), tokenizer)
    assert labels_of(write(tmp_path, name, mended), tokenizer) == ("bad", "good")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*READ, *REFUSED])
def test_it_goes_from_the_file_to_predictions(name, tmp_path):
    content, cures = REFUSED.get(name) or (READ[name], [])
    path = write(tmp_path, name, content)
    settings = [word for cure in cures for word in ("--set", cure)]
    trained = run("train", "--dataset", path, *settings, "--method", "feature-extraction", "--output", tmp_path / "run")
    assert trained.exit_code == 0, trained.output
    answered = run("predict", tmp_path / "run", "a lovely café", "an awful one")
    assert answered.exit_code == 0, answered.output
