"""Classification data: formats, columns, labels, pairs, the demo, the report."""

import json
import subprocess
import sys

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ftkit.config.tree import DataConfig
from ftkit.data.prepare import prepare_data
from ftkit.data.reading.files import read_file
from ftkit.data.tokens.encode import encode_texts
from ftkit.data.tokens.tokenizer import TextTokenizer
from ftkit.errors import DataError

TASK = "sequence-classification"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "film", "good", "bad", "a", "b", "c", *map(str, range(100))]
ROWS = [{"text": f"film {number}", "label": "good" if number % 3 else "bad"} for number in range(60)]
ALL = {"validation_share": 0.0, "test_share": 0.0}


@pytest.fixture(scope="module")
def tokenizer():
    """One token a word, [CLS] and [SEP] as BERT puts them."""
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_csv(path, rows):
    path.write_text(",".join(rows[0]) + "\n" + "".join(",".join(map(str, row.values())) + "\n" for row in rows))
    return str(path)


def words(tokenizer, split, place):
    return tokenizer.convert_ids_to_tokens(split.tokens[split.offsets[place] : split.offsets[place + 1]].tolist())


def prepare(tokenizer, path, seed=0, model=None, **settings):
    return prepare_data(DataConfig(dataset=str(path), **settings), TASK, tokenizer, seed, model)


def test_the_demo_is_a_third_of_the_reviews_by_movie_unless_all_are_asked_for(minilm):
    data = prepare_data(DataConfig(), TASK, minilm, seed=0)
    assert sum(data.report.rows.values()) == 3992
    assert ("test", "train") not in data.report.shared
    with pytest.raises(DataError, match=r"data\.subset='most': the embedded reviews have the subset all"):
        prepare_data(DataConfig(subset="most"), TASK, minilm, seed=0)


def test_the_demo_is_split_by_movie_and_has_two_labels(minilm):
    data = prepare_data(DataConfig(subset="all"), TASK, minilm, seed=0)
    assert data.label_names == ("fresh", "rotten")
    assert sum(data.report.rows.values()) == 12_752
    assert data.report.dropped_duplicates == 56
    assert ("test", "train") not in data.report.shared
    assert len(data.validation) == pytest.approx(1275, abs=1)
    assert len(data.test) == pytest.approx(1275, abs=1)
    assert minilm.decode(data.train.tokens[: data.train.offsets[1]]).startswith("[CLS]")


def test_the_demo_is_the_same_for_the_same_seed_and_another_for_another(minilm):
    config = DataConfig(max_train_samples=50, max_eval_samples=20)
    first, again, other = (prepare_data(config, TASK, minilm, seed).fingerprint for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet", "arrow"])
def test_every_format_gives_the_same_arrays(kind, tmp_path, tokenizer):
    path = tmp_path / f"data.{kind}"
    table = pa.Table.from_pylist(ROWS)
    match kind:
        case "csv" | "tsv":
            separator = "," if kind == "csv" else "\t"
            path.write_text(f"text{separator}label\n" + "".join(f"{r['text']}{separator}{r['label']}\n" for r in ROWS))
        case "json":
            path.write_text(json.dumps(ROWS, indent=1))
        case "jsonl":
            write_jsonl(path, ROWS)
        case "parquet":
            pyarrow.parquet.write_table(table, path)
        case "arrow":
            with pa.ipc.new_stream(path, table.schema) as writer:
                writer.write_table(table)
    data = prepare(tokenizer, path)
    expected = prepare(tokenizer, write_jsonl(tmp_path / "expected.jsonl", ROWS))
    assert data.fingerprint == expected.fingerprint
    assert (len(data.train), len(data.validation), len(data.test)) == (48, 6, 6)


def test_arrays_have_the_promised_types_and_no_padding(tmp_path, tokenizer):
    train = prepare(tokenizer, write_csv(tmp_path / "d.csv", ROWS)).train
    assert (train.tokens.dtype, train.offsets.dtype, train.labels.dtype) == (np.int32, np.int64, np.int64)
    assert train.offsets[0] == 0
    assert train.offsets[-1] == len(train.tokens)
    assert (train.lengths == 4).all()  # [CLS] film 7 [SEP]
    assert (train.num_targets == 1).all()
    assert train.segments is None


def test_a_csv_keeps_commas_line_breaks_and_words_like_NA(tmp_path):
    (tmp_path / "d.csv").write_bytes('\ufefftext,label\r\n"a, ""b""\nc",NA\r\nnull,1\r\n'.encode())
    rows = read_file(tmp_path / "d.csv", DataConfig()).table.to_pylist()
    assert rows == [{"text": 'a, "b"\nc', "label": "NA"}, {"text": "null", "label": "1"}]


def test_a_folder_of_split_files_is_read_as_it_is(tmp_path, tokenizer):
    write_csv(tmp_path / "train.csv", ROWS[:30])
    write_jsonl(tmp_path / "dev.jsonl", ROWS[30:40])
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS[40:50]), tmp_path / "test-00000-of-00002.parquet")
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS[50:]), tmp_path / "test-00001-of-00002.parquet")
    data = prepare(tokenizer, tmp_path)
    assert data.report.rows == {"train": 30, "validation": 10, "test": 20}
    assert data.report.origins["train"] == "as found"


def test_a_saved_dataset_gives_its_class_names_in_their_order(tmp_path, tokenizer):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["zeta", "alpha"])}
    )
    rows = {"text": [f"film {number}" for number in range(40)], "label": [0, 1] * 20}
    whole = datasets.Dataset.from_dict(rows, features=features).train_test_split(0.25, seed=0)
    whole.save_to_disk(str(tmp_path / "saved"))
    data = prepare(tokenizer, tmp_path / "saved", validation_share=0.0)
    assert data.label_names == ("zeta", "alpha")
    assert data.report.rows == {"train": 30, "test": 10}
    assert data.report.files == {"train": ("its split 'train' (30 rows)",), "test": ("its split 'test' (10 rows)",)}
    even = [words(tokenizer, data.test, place)[2] for place in np.flatnonzero(data.test.labels == 0)]
    assert all(int(word) % 2 == 0 for word in even)


def test_each_split_is_read_by_the_class_names_of_its_own_file(tmp_path, tokenizer):
    for split, names in (("train", ["bad", "good"]), ("test", ["good", "bad"])):
        kinds = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
        rows = {"text": [f"film {n}" for n in range(20)], "label": [names.index(word) for word in ["good", "bad"] * 10]}
        datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).to_parquet(tmp_path / f"{split}.parquet")
    data = prepare(tokenizer, tmp_path, validation_share=0.0)
    assert data.label_names == ("bad", "good")
    assert data.train.labels.tolist() == data.test.labels.tolist() == [1, 0] * 10


def test_the_report_names_the_files_of_each_split_and_what_is_left_alone(tmp_path, tokenizer):
    for name in ("train.csv", "test.csv", "train_old.csv"):
        write_csv(tmp_path / name, ROWS)
    lines = prepare(tokenizer, tmp_path, validation_share=0.0).report.lines()
    assert lines[1:4] == [
        "train is read from train.csv (60 rows)",
        "test is read from test.csv (60 rows)",
        "not read: train_old.csv",
    ]


def test_what_is_not_found_alone_is_made_of_the_training_split(tmp_path, tokenizer):
    write_csv(tmp_path / "train.csv", ROWS[:40])
    write_csv(tmp_path / "test.csv", ROWS[40:])
    data = prepare(tokenizer, tmp_path)
    assert data.report.rows == {"train": 36, "validation": 4, "test": 20}


def test_a_test_split_without_labels_is_replaced_by_one_that_is_made(tmp_path, tokenizer):
    write_jsonl(tmp_path / "train.jsonl", [{"text": f"film {n}", "label": n % 2} for n in range(40)])
    write_jsonl(tmp_path / "test.jsonl", [{"text": f"film {n}", "label": -1} for n in range(40, 50)])
    data = prepare(tokenizer, tmp_path, validation_share=0.0)
    assert data.report.rows == {"train": 36, "test": 4}
    assert data.report.dropped_unlabelled == 10


def test_a_test_file_without_a_label_column_counts_as_unlabelled(tmp_path, tokenizer):
    write_csv(tmp_path / "train.csv", ROWS)
    write_csv(tmp_path / "test.csv", [{"text": f"film {n}"} for n in range(5)])
    assert prepare(tokenizer, tmp_path).report.rows == {"train": 48, "validation": 6, "test": 6}


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        ([1, 0, 1], ("0", "1"), [1, 0, 1]),
        ([10, 2, 10], ("2", "10"), [1, 0, 1]),
        ([5.0, 1.0, 5.0], ("1", "5"), [1, 0, 1]),
        ([True, False, True], ("false", "true"), [1, 0, 1]),
        (["10", "9", "10"], ("9", "10"), [1, 0, 1]),
        ([0.5, 4.5, 4.0], ("0.5", "4", "4.5"), [0, 2, 1]),
    ],
)
def test_classes_are_numbered_in_their_own_order_and_keep_their_names(labels, names, numbers, tmp_path, tokenizer):
    rows = [{"text": f"film {place}", "label": label} for place, label in enumerate(labels)]
    data = prepare(tokenizer, write_jsonl(tmp_path / "d.jsonl", rows), label_kind="single", **ALL)
    assert data.label_names == names
    assert data.train.labels.tolist() == numbers


@pytest.mark.parametrize(
    ("labels", "numbers"), [([0, 1, 0], [0, 1, 0]), ([3, 7, 3], [0, 1, 0]), ([-1, 1, -1], [0, 1, 0])]
)
def test_given_names_name_whole_numbers_in_order(labels, numbers, tmp_path, tokenizer):
    rows = [{"text": f"film {place}", "label": label} for place, label in enumerate(labels)]
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    data = prepare(tokenizer, path, label_names=("no", "yes"), **ALL)
    assert data.label_names == ("no", "yes")
    assert data.train.labels.tolist() == numbers


def test_labels_take_the_order_of_a_model_that_has_a_head(tmp_path, tokenizer):
    path = write_csv(tmp_path / "d.csv", ROWS)
    own = prepare(tokenizer, path)
    swapped = prepare(tokenizer, path, model=("good", "bad"))
    generic = prepare(tokenizer, path, model=("LABEL_0", "LABEL_1"))
    assert own.label_names == generic.label_names == ("bad", "good")
    assert swapped.label_names == ("good", "bad")
    assert (swapped.train.labels == 1 - own.train.labels).all()
    assert swapped.report.label_counts["train"] == own.report.label_counts["train"][::-1]


def test_other_names_than_the_models_are_refused_with_both_named(tmp_path, tokenizer):
    with pytest.raises(DataError, match=r"bad, good.*NEGATIVE, POSITIVE.*label_names"):
        prepare(tokenizer, write_csv(tmp_path / "d.csv", ROWS), model=("NEGATIVE", "POSITIVE"))


def test_known_pairs_are_found_and_have_segments(tmp_path, tokenizer):
    rows = [{"Premise": f"film {n}", "Hypothesis": "good", "Label": n % 2} for n in range(40)]
    data = prepare(tokenizer, write_csv(tmp_path / "d.csv", rows), **ALL)
    assert words(tokenizer, data.train, 0) == ["[CLS]", "film", "0", "[SEP]", "good", "[SEP]"]
    assert data.train.segments.dtype == np.int8
    assert data.train.segments[:6].tolist() == [0, 0, 0, 0, 1, 1]
    assert data.report.columns == {"text": "Premise", "pair": "Hypothesis", "label": "Label"}


def test_half_a_pair_is_told(tmp_path, tokenizer):
    rows = [{"text_a": f"film {n}", "text_b": "good" if n % 4 else "", "label": n % 2} for n in range(40)]
    lines = prepare(tokenizer, write_csv(tmp_path / "d.csv", rows), **ALL).report.lines()
    assert any("one text of the pair alone: 10" in line for line in lines)


def test_a_named_text_column_wins_over_a_pair_that_could_be_found(tmp_path, tokenizer):
    rows = [{"question": f"film {n}", "answer": "good", "label": n % 2} for n in range(10)]
    data = prepare(tokenizer, write_csv(tmp_path / "d.csv", rows), text_column="question", **ALL)
    assert words(tokenizer, data.train, 0) == ["[CLS]", "film", "0", "[SEP]"]


def test_long_texts_are_cut_on_the_right_and_counted(tmp_path, tokenizer):
    rows = [{"text": "a b c film good", "label": 0}, {"text": "a b", "label": 1}]
    tokenizer.truncation_side = "left"
    data = prepare(tokenizer, write_csv(tmp_path / "d.csv", rows), max_length=4, **ALL)
    assert tokenizer.truncation_side == "left"
    assert words(tokenizer, data.train, 0) == words(tokenizer, data.train, 1) == ["[CLS]", "a", "b", "[SEP]"]
    assert data.report.truncated_share["train"] == 0.5


def test_of_a_pair_the_longer_text_gives_first(tokenizer):
    split = encode_texts(["a b c film"], TextTokenizer.of(tokenizer), 6, ["good"]).split
    assert words(tokenizer, split, 0) == ["[CLS]", "a", "b", "[SEP]", "good", "[SEP]"]


def test_a_text_without_tokens_becomes_one_token(tokenizer):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="[SEP]", unk_token="[UNK]")
    bare.backend_tokenizer.post_processor = processors.Sequence([])
    split = encode_texts(["", "film"], TextTokenizer.of(bare), 8).split
    assert split.tokens.tolist() == [3, 4]
    assert split.lengths.tolist() == [1, 1]


def test_empty_rows_are_left_out_and_counted(tmp_path, tokenizer):
    rows = [*ROWS[:20], {"text": None, "label": "good"}, {"text": "  ", "label": None}]
    data = prepare(tokenizer, write_jsonl(tmp_path / "d.jsonl", rows), **ALL)
    assert len(data.train) == 20
    assert data.report.dropped_empty == 2


def test_repeated_texts_are_left_out_where_splits_are_made_and_kept_where_they_are_found(tmp_path, tokenizer):
    made = prepare(tokenizer, write_csv(tmp_path / "d.csv", ROWS + ROWS[:9]))
    assert sum(made.report.rows.values()) == 60
    assert (made.report.dropped_duplicates, made.report.shared) == (9, {})
    (tmp_path / "found").mkdir()
    write_csv(tmp_path / "found" / "train.csv", ROWS)
    write_csv(tmp_path / "found" / "test.csv", ROWS[:9])
    found = prepare(tokenizer, tmp_path / "found", validation_share=0.0)
    assert found.report.rows == {"train": 60, "test": 9}
    assert found.report.shared == {("test", "train"): 9}
    assert any("100.0% of the test texts are in the training split" in line for line in found.report.lines())


def test_samples_are_drawn_by_the_seed_with_every_label(tmp_path, tokenizer):
    path = write_csv(tmp_path / "d.csv", ROWS)
    data = prepare(tokenizer, path, max_train_samples=12, max_eval_samples=3)
    assert data.report.rows == {"train": 12, "validation": 3, "test": 3}
    assert data.report.label_counts["train"] == (4, 8)
    again = prepare(tokenizer, path, max_train_samples=12, max_eval_samples=3)
    assert data.fingerprint == again.fingerprint


def test_groups_stay_together(tmp_path, tokenizer):
    rows = [row | {"author": f"x{number // 4}"} for number, row in enumerate(ROWS)]
    data = prepare(tokenizer, write_csv(tmp_path / "d.csv", rows), group_column="author")
    seen = [
        {int(words(tokenizer, split, place)[2]) // 4 for place in range(len(split))}
        for split in (data.train, data.validation, data.test)
    ]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 15


def test_the_fingerprint_follows_tokens_and_names(tmp_path, tokenizer):
    path = write_csv(tmp_path / "d.csv", ROWS)
    prints = {
        prepare(tokenizer, path).fingerprint,
        prepare(tokenizer, path, max_length=3).fingerprint,
        prepare(tokenizer, path, label_names=("good", "bad")).fingerprint,
        prepare(tokenizer, path, test_share=0.0).fingerprint,
    }
    assert len(prints) == 4


def test_the_report_says_what_was_found(tmp_path, tokenizer):
    lines = prepare(tokenizer, write_csv(tmp_path / "d.csv", ROWS)).report.lines()
    assert "text 'text', label 'label'" in lines[0]
    assert lines[1] == "train is read from d.csv (60 rows)"
    assert lines[2].startswith(
        "train: 48 sequences (drawn by the seed, labels by their shares); bad 16, good 32; 4 to 4"
    )
    assert len(lines) == 5


def test_importing_the_data_floor_imports_neither_torch_nor_datasets():
    code = "import sys, ftkit.data; print({'torch', 'datasets', 'transformers'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
