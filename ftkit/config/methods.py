"""The section of a method, and the table of the methods, which is open: registering a section adds a method.

A method is a class in a file of its own in `ftkit/models/methods/`: its fields are its section of the configuration,
and its functions are all that it does. That room lies above this one, so this file names it and never imports it at
its top, as a program names the place of its plug-ins.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, GetJsonSchemaHandler, PlainValidator, SerializeAsAny
from pydantic_core import PydanticCustomError

from ftkit.config.section import Section

HOME = "ftkit.models.methods"
"""The package that registers ftkit's own methods when it is imported; it imports no torch."""
DEFAULT = "lora"
"""The method of a run that names none."""
UNKNOWN = "unknown_method"
"""The type of pydantic's error for a name that no method has."""


class MethodSection(Section):
    """The part of a method that the configuration, the command line, the planner and the reports know.

    What it does to a model is in `ftkit.models.methods.Method`. A method says here only how it differs from one that
    trains weights of the model itself, alike in all layers, and whose result is the whole model.
    """

    name: str = ""
    """The method's own; a literal in each section."""
    label: ClassVar[str]
    """What a report calls it."""
    default_learning_rate: ClassVar[float]
    """The peak learning rate of a run that names none."""
    flags: ClassVar[Mapping[str, str]] = {}
    """Flags of the command line, and the fields of the section that they fill: `--rank` and `rank`."""
    shown: ClassVar[Mapping[str, str]] = {}
    """Fields that a report sets beside the label, and what it calls them: `rank` and `r` make `LoRA r=8`."""
    is_adapter: ClassVar[bool] = False
    """Whether the result is what trained, to be loaded beside its base model; else it is a whole model."""
    trains_all: ClassVar[bool] = False
    """Whether every weight trains, so that masters and moments are most of what is held."""
    cpu_micro_batch_tokens: ClassVar[int] = 512
    """Padded tokens of a micro-batch on a CPU in fp32, where no cut is named: the fewest with which a step takes hardly
    longer than with the best cut, 1.03 to 1.09 times (docs/performance.md). With more, layers keep more; with fewer,
    what a micro-batch costs whatever it holds comes too often: it reads all weights twice, and asks for operators."""

    @property
    def leaves_trunk(self) -> bool:
        """Whether the embeddings and the lower layers, or all layers, stay frozen below all that trains."""
        return False

    @property
    def fits_at_once(self) -> bool:
        """Whether what trains is solved for in the place of steps, from what a frozen trunk made of all texts."""
        return False

    def stored_parameters(self, num_parameters: int, num_trainable_parameters: int) -> int:
        """Return how many weights the result on the disk has, of all and of those that train."""
        return num_trainable_parameters if self.is_adapter else num_parameters

    def adapts(self, layer: int, num_layers: int) -> bool:  # noqa: ARG002  # asked of each layer
        """Return whether the method treats a layer, counted from 0, as one of those that it is meant for."""
        return True

    def on_layers(self, kept: Sequence[int], num_layers: int) -> Self:  # noqa: ARG002  # which layers are left
        """Return the method for a model that has some layers alone, in their order; plans trace a few."""
        return self

    def cheaper(self) -> Sequence[dict[str, Any]]:
        """Return what a search may try in its place to need less memory: dotted keys with their values."""
        return ()


_table: dict[str, type[MethodSection]] = {}


def register(section: type[MethodSection]) -> type[MethodSection]:
    """Add a method to the table, under the default of its field `name`; also a decorator.

    Args:
        section: a section that has all that `ftkit.models.methods.Method` asks for.

    Returns:
        The same section.
    """
    _table[section.model_fields["name"].default] = section
    return section


def methods() -> dict[str, type[MethodSection]]:
    """Return the sections of all methods by name; ftkit's own come first."""
    importlib.import_module(HOME)
    return _table


def default_method() -> MethodSection:
    """Return the method of a run that names none."""
    return methods()[DEFAULT]()


def section_of(value: Any) -> type[MethodSection] | None:
    """Return the section that a name, or a mapping with a `name`, stands for; None where there is no such method."""
    name = value.get("name", DEFAULT) if isinstance(value, dict) else value
    return methods().get(name) if isinstance(name, str) else None


def _choose(value: Any) -> MethodSection:
    if isinstance(value, MethodSection):
        return value
    section = section_of(value)
    if section is None:
        raise PydanticCustomError(UNKNOWN, "unknown method")
    return section.model_validate(value if isinstance(value, dict) else {})


class _OneOfTheTable:
    """Describes a method in a JSON schema: one of those that are registered, told apart by their names."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        choices = [handler(section.__pydantic_core_schema__) for section in methods().values()]
        return {"oneOf": choices, "discriminator": {"propertyName": "name"}}


AnyMethod = Annotated[SerializeAsAny[MethodSection], PlainValidator(_choose), _OneOfTheTable(), Field()]
