"""The program on a model card: it loads a result as it was scored, and uses it once."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ftkit.config.precision import TORCH_NAMES
from ftkit.config.tree import Task
from ftkit.data.arrays import Labels


@dataclass(frozen=True)
class Card:
    """What a program must know to load a result as it was scored, and to use it as it was trained.

    Attributes:
        folder: where the model was saved, from the root.
        task: what it was trained for.
        labels: what the labels are; None for causal-lm.
        pad_token_id: the tokenizer's.
        precision: what it computed in: `fp32`, `bf16` or `fp16`.
        max_length: tokens after which a text was cut.
        example: one text, two of them, or a chat in the tokenizer's template, which may want contents in parts.
        experts: experts in 4 bits: the class of their module, and the name of a parameter.
        hub_name: what the hub calls the model, for those who have it from there; None: it is on this machine.
    """

    folder: Path
    task: Task
    labels: Labels | None
    pad_token_id: int
    precision: str
    max_length: int = 128
    example: Literal["text", "pair", "chat", "chat in parts"] = "text"
    experts: tuple[tuple[str, str], ...] = ()
    hub_name: str | None = None

    @property
    def dtype(self) -> str:
        """The expression of what it computed in."""
        return f"torch.{TORCH_NAMES[self.precision]}"

    def place(self) -> list[str]:
        """Return the lines that say where the model is."""
        if self.hub_name is not None:
            return [f"folder = {json.dumps(self.hub_name)}"]
        places = ", ".join(json.dumps(name, ensure_ascii=False) for name in (str(self.folder), self.folder.name))
        return [
            "# Where the run has left it, or in a copy of its folder if you are there.",
            f"folder = next(place for place in ({places}) if os.path.isdir(place))",
        ]

    def program(
        self,
        library: str,
        loader: str,
        arguments: Sequence[str] = (),
        imports: Sequence[str] = (),
        loaded: Sequence[str] = (),
    ) -> list[str]:
        """Return the lines of a program that loads model and tokenizer and uses them once.

        Args:
            library: whose class loads the model.
            loader: that class, without the task: `AutoModelFor`.
            arguments: of its `from_pretrained`, beside folder and dtype.
            imports: further lines at the top.
            loaded: lines that set the loaded model right.
        """
        kind = loader + ("SequenceClassification" if self.task == "sequence-classification" else "CausalLM")
        return [
            *(["import os", ""] if self.hub_name is None else []),
            "import torch",
            f"from {library} import {kind}",
            "from transformers import AutoTokenizer",
            *imports,
            "",
            *self.place(),
            f"model = {kind}.from_pretrained(",
            "    folder,",
            *(f"    {argument}," for argument in (f"dtype={self.dtype}", *arguments)),
            ").eval()",
            *loaded,
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            "",
            *(self._classify() if self.task == "sequence-classification" else self._generate()),
        ]

    def _classify(self) -> list[str]:
        given = '["A text."], ["Its second text."]' if self.example == "pair" else '["A text.", "Another one."]'
        segments = "" if self.example == "pair" else ", return_token_type_ids=False"
        return [
            "inputs = tokenizer(",
            f"    {given}, padding=True, truncation=True, max_length={self.max_length}{segments},",
            '    return_tensors="pt",',
            ")",
            "with torch.inference_mode():",
            "    logits = model(**inputs).logits",
            *self._answer(),
        ]

    def _answer(self) -> list[str]:
        """Return lines that turn logits into what a label is: a name, several names or a number."""
        assert self.labels is not None
        if self.labels.kind == "regression":
            mean, deviation = self.labels.standard.mean, self.labels.standard.deviation
            return [f"print((logits[:, 0] * {deviation!r} + {mean!r}).tolist())"]
        if self.labels.kind == "multi":
            return [
                "for row in (logits.sigmoid() > 0.5).tolist():",
                "    print([model.config.id2label[number] for number, is_so in enumerate(row) if is_so])",
            ]
        return ["print([model.config.id2label[number] for number in logits.argmax(-1).tolist()])"]

    def _generate(self) -> list[str]:
        inputs = 'tokenizer("Once upon a time", return_token_type_ids=False, return_tensors="pt")'
        if self.example in ("chat", "chat in parts"):
            content = '"Hello!"' if self.example == "chat" else '[{"type": "text", "text": "Hello!"}]'
            inputs = (
                f'tokenizer.apply_chat_template([{{"role": "user", "content": {content}}}], '
                'add_generation_prompt=True, return_dict=True, return_tensors="pt")'
            )
        return [
            f"inputs = {inputs}",
            "tokens = model.generate(**inputs, max_new_tokens=20)[0]",
            "print(tokenizer.decode(tokens))",
        ]
