"""Baselines see the training split alone, answer the texts of the runs, and are rows like them."""

import json

import numpy as np
import pytest

from ftkit.config.files import load_config
from ftkit.records.answers import answers_file, read_answers
from ftkit.records.files import read_record
from ftkit.report.collect import collect_runs
from ftkit.report.columns import COLUMNS, split_shared
from ftkit.report.contest import contest
from ftkit.training.study.baselines import CONSTANT, FOLDERS, WORDS, NoBaselineError, write_baselines
from tests.helpers import save_tiny_model

SIZES = {"train": 60, "validation": 12, "test": 30}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Return a folder with a tokenizer, and texts whose words give their labels away."""
    folder, draw = tmp_path_factory.mktemp("work"), np.random.default_rng(0)
    save_tiny_model(folder / "bert", "bert")
    for split, size in SIZES.items():
        rows = [
            (["good", "bad"][place % 3 == 0], draw.choice(["a", "the", "film", "plot"], 4)) for place in range(size)
        ]
        for kind in ("single", "multi", "regression"):
            (folder / kind).mkdir(exist_ok=True)
            label = {"single": str, "multi": lambda word: ["film"] * (word == "bad") + [word], "regression": len}[kind]
            lines = [json.dumps({"text": " ".join([word, *words]), "label": label(word)}) for word, words in rows]
            (folder / kind / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def config_of(work, kind, *settings):
    named = [f"model.name={work / 'bert'}", f"data.dataset={work / kind}", f"data.label_kind={kind}"]
    return load_config(settings=[*named, *settings])


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_baselines_are_rows_with_the_answers_to_every_text_of_a_split(work, kind, tmp_path):
    write_baselines(config_of(work, kind), tmp_path, lambda _: None)
    constant, words = (tmp_path / FOLDERS[name] for name in (CONSTANT, WORDS))
    figure = "accuracy" if kind == "single" else "exact_match"
    line = read_record(constant).last_evaluation("test")
    assert getattr(line, figure) == line.baseline == pytest.approx(2 / 3)
    assert getattr(read_record(words).last_evaluation("test"), figure) == 1.0, "a word of each text is its label"
    given = [read_answers(answers_file(folder, "test")) for folder in (constant, words)]
    assert given[0].texts == given[1].texts
    assert len(given[0]) == SIZES["test"]
    assert len(np.unique(given[0].probabilities, axis=0)) == 1
    assert {one.label for one in contest(collect_runs([tmp_path]))} == {CONSTANT, WORDS}


def test_a_baseline_has_none_of_the_settings_that_all_runs_share(work, tmp_path):
    write_baselines(config_of(work, "single"), tmp_path, lambda _: None)
    runs = collect_runs([tmp_path])
    trained = runs[0].record.run
    config = {"model": {"name": "m"}, "method": {"name": "lora"}, "batch": {"global_batch_size": 32}}
    trained = trained.model_copy(update={"config": config, "purpose": "training", "engine": "plain"})
    runs.append(type(runs[0])("lora", runs[0].record.model_copy(update={"run": trained})))
    _, shared = split_shared(runs, COLUMNS)
    assert {"model", "engine", "global_batch_size"} <= {column.key for column in shared}


@pytest.mark.parametrize(("kind", "settings"), [("regression", ()), ("single", ("task=causal-lm",))])
def test_numbers_and_tokens_have_no_baselines(work, kind, settings, tmp_path):
    with pytest.raises(NoBaselineError, match="classes and labels"):
        write_baselines(config_of(work, kind, *settings), tmp_path, lambda _: None)
    assert not list(tmp_path.iterdir())
