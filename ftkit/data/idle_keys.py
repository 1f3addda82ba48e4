"""Keys of the configuration that have no effect on the data at hand."""

from ftkit.config.tree import DataConfig
from ftkit.data.findings import Finding, warning
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
        ("loss_on",): columns.kind in ("completion", "chat"),
    }
    usual = DataConfig()
    idle = [key for keys, has_effect in works.items() for key in keys if not has_effect]
    changed = [key for key in idle if getattr(config, key) != getattr(usual, key)]
    kind = _KINDS[columns.kind]
    return [warning(f"data.{key} has no effect on {kind}", "leave it out, or name other columns") for key in changed]
