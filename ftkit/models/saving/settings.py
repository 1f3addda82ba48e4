"""Write the settings of a saved model: what training changed for itself is put back as the base model has it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.models.sources.source import Source, load_tokenizer, own_config

if TYPE_CHECKING:
    import torch

_CONFIGS = ("config.json", "generation_config.json")


def save_tokenizer(tokenizer: Any, source: Source, folder: Path) -> None:
    """Write the base model's tokenizer, with the pad token, the chat template and the padding of the run.

    A tokenizer that has been called keeps how it cut and padded, and would write that down; a fresh one has not.

    Args:
        tokenizer: the run's.
        source: where the base model is.
        folder: where to.
    """
    fresh = load_tokenizer(source)
    fresh.chat_template = tokenizer.chat_template
    if fresh.padding_side != tokenizer.padding_side:
        # What a tokenizer was not made with it does not save (PreTrainedTokenizerBase.save_pretrained).
        fresh.padding_side = fresh.init_kwargs["padding_side"] = tokenizer.padding_side
    fresh.save_pretrained(folder)


def restore_settings(source: Source, dtype: "torch.dtype", folder: Path) -> None:
    """Set what training changed in the configuration of a saved model back to what the base model came with.

    Args:
        source: where the base model is.
        dtype: what the weights were saved in.
        folder: of the saved model.
    """
    use_cache = getattr(own_config(source), "use_cache", None)
    for file in (folder / name for name in _CONFIGS):
        if file.is_file():
            fields = json.loads(file.read_text(encoding="utf-8"))
            fields.pop("use_cache", None)
            fields |= {} if use_cache is None else {"use_cache": use_cache}
            fields |= {"dtype": str(dtype).removeprefix("torch.")} if "dtype" in fields else {}
            file.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    adapter = folder / "adapter_config.json"
    if adapter.is_file():  # PEFT forgets the revision, and knows a base model by whatever its configuration says
        fields = json.loads(adapter.read_text(encoding="utf-8"))
        fields |= {"base_model_name_or_path": source.name, "revision": source.revision}
        adapter.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
