"""Write the parts of a model card, with the program in it that loads the model, and save whole models."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ftkit.config.tree import Task

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Card:
    """The facts that a program needs to load a result as it was scored.

    Attributes:
        folder: where the model was saved.
        task: what it was trained for.
        label_names: the classes in the order of their numbers; None for causal-lm.
        pad_token_id: the tokenizer's.
        precision: what it computed in: `fp32`, `bf16` or `fp16`.
        problem_type: what transformers calls the kind of its labels; None for causal-lm.
    """

    folder: Path
    task: Task
    label_names: tuple[str, ...] | None
    pad_token_id: int
    precision: str
    problem_type: str | None = None

    def program(
        self, library: str, loader: str, arguments: Iterable[str] = (), imports: Iterable[str] = ()
    ) -> list[str]:
        """Return the lines of a program that loads model and tokenizer.

        Args:
            library: whose class loads the model.
            loader: that class, without the task: `AutoModelFor`.
            arguments: of its `from_pretrained`, beside the folder.
            imports: lines that come first.
        """
        kind = loader + ("SequenceClassification" if self.task == "sequence-classification" else "CausalLM")
        return [
            *imports,
            f"from {library} import {kind}",
            "from transformers import AutoTokenizer",
            "",
            f"model = {kind}.from_pretrained(",
            f'    "{self.folder.name}",',
            *(f"    {argument}," for argument in arguments),
            ")",
            f'tokenizer = AutoTokenizer.from_pretrained("{self.folder.name}")',
        ]


def save_whole(model: "nn.Module", folder: Path, weights: "dict[str, torch.Tensor]") -> None:
    """Write a model as transformers loads it.

    Args:
        model: a transformers model; its own tensors may be partitioned.
        folder: where to.
        weights: all, whole, by their names.
    """
    cast(Any, model).save_pretrained(folder, state_dict=weights)
