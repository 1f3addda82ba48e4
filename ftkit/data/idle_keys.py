"""Keys of the configuration that have no effect on the data at hand."""

from pathlib import Path

from ftkit.config.paths import is_there
from ftkit.config.tree import DEMO, DataConfig
from ftkit.data.findings import Finding, warning
from ftkit.data.reading.files import DELIMITED, KINDS, TEXT_KINDS, kind_of_file
from ftkit.data.reading.sources import Source
from ftkit.data.table.columns import Columns

_KINDS = {
    "labelled": "texts with labels",
    "plain": "plain text",
    "lines": "one running text",
    "completion": "prompts and completions",
    "chat": "chats",
}


def idle_keys(config: DataConfig, columns: Columns) -> list[Finding]:
    """Name the keys that were set and have no effect.

    Args:
        config: of the data.
        columns: what was chosen.

    Returns:
        A warning for each key.
    """
    is_chat = columns.kind == "chat" or columns.as_chat
    works = {
        ("label_column", "label_columns", "label_names", "label_kind", "text_pair_column"): columns.kind == "labelled",
        ("prompt_column", "completion_column", "prompt_template"): columns.kind in ("completion", "chat"),
        ("prompt_format",): columns.kind == "completion",
        ("messages_column",): columns.kind == "chat",
        ("system_column", "tools_column", "chat_template", "chat_date", "template_omissions"): is_chat,
        ("near_duplicates",): columns.kind != "lines",
        ("loss_on",): columns.kind in ("completion", "chat"),
    }
    kind = _KINDS[columns.kind]
    changed = _changed(config, [key for keys, has_effect in works.items() for key in keys if not has_effect])
    return [warning(f"data.{key} has no effect on {kind}", "leave it out, or name other columns") for key in changed]


def idle_for_source(config: DataConfig, source: Source) -> list[Finding]:
    """Name the keys that were set and say how to read files of other kinds, or how to make splits that are there.

    Args:
        config: of the data.
        source: the dataset as it was found.

    Returns:
        A warning for each key.
    """
    shards = [shard for split in source.splits.values() for shard in split.shards]
    # A table that `datasets` gave is called by the dataset, whose name may have a dot.
    kinds = {".txt" if shard.files else kind_of_file(Path(shard.name)) for shard in shards} & KINDS.keys()
    has_subsets = config.dataset == DEMO or not is_there(config.dataset) or bool(kinds & {".xlsx", ".xlsm"})
    shares = {"validation": config.validation_share, "test": config.test_share}
    makes_splits = any(share > 0 and split not in source.splits for split, share in shares.items())
    files = "files of this kind" if kinds else "a dataset that is not text files"
    works = {
        "encoding": (bool(kinds & TEXT_KINDS.keys()), f"on {files}"),
        "separator": (bool(kinds & set(DELIMITED)), f"on {files}"),
        "quotes": (bool(kinds & set(DELIMITED)), f"on {files}"),
        "subset": (has_subsets, f"on {files}"),
        "validation_share": ("validation" not in source.splits, "beside the validation split that the dataset has"),
        "test_share": ("test" not in source.splits, "beside the test split that the dataset has"),
        "group_column": (makes_splits, "where no split is made"),
        "near_duplicates": (makes_splits, "where no split is made"),
    }
    changed = _changed(config, [key for key, (has_effect, _) in works.items() if not has_effect])
    return [warning(f"data.{key} has no effect {works[key][1]}", "leave it out") for key in changed]


def _changed(config: DataConfig, keys: list[str]) -> list[str]:
    usual = DataConfig()
    return [key for key in keys if getattr(config, key) != getattr(usual, key)]
