"""How training is spread over devices, and how their memory is used."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from ftkit.config import rules
from ftkit.config.section import Name, Section
from ftkit.errors import ConfigError
from ftkit.units import parse_bytes

Offload = Literal["none", "cpu", "nvme"]


class EngineConfig(Section):
    """The distribution of training over devices, and of the device's memory."""

    name: Literal["auto", "plain", "deepspeed"] = "auto"
    """`auto`: DeepSpeed under its launcher or where ZeRO, offload or a template is asked for, else plain."""
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """What ZeRO partitions: 0 nothing (the plain engine), 1 the optimizer, 2 gradients too, 3 weights too; 2 under
    DeepSpeed when not named."""
    offload_optimizer: Offload = "none"
    """Where the optimizer's state lives under ZeRO."""
    offload_parameters: Offload = "none"
    """Where the weights live under ZeRO-3."""
    stream_layers: Literal["none", "ram", "disk"] = "none"
    """Keep frozen layers in the host's memory (`ram`) or the model's files (`disk`), and two of them on the device."""
    stream_micro_batches: Annotated[int, Field(ge=1)] | Literal["all"] = 1
    """Micro-batches of a step that go through a streamed layer before the next layer comes, `all` or a number. Weights
    come as often less, and the inputs of all layers stay for as many micro-batches."""
    stream_head: bool = False
    """Let the head of a language model come too, in the place of the two layers, when all layers have run."""
    nvme_path: Name | None = None
    """The folder on the disk that takes what is offloaded to `nvme`."""
    ds_config: Name | None = None
    """A DeepSpeed template of your own (JSON), in the place of the one in ds_configs/."""
    peer_timeout: float = Field(default=600.0, gt=0.0)
    """Seconds after which a rank that does not answer counts as lost, and the others end."""
    expandable_segments: bool = False
    """CUDA: torch's allocator lets segments grow and returns free pages, so that fragmentation is low."""
    memory_budget: str | None = None
    """What a run may take of each device, such as `6GiB`, for the plan before it; all that the device has when not
    named."""
    fit: bool = False
    """Let the planner choose the micro-batch, what layers recompute, whether activations wait on the host (CUDA),
    whether frozen layers are streamed and, under DeepSpeed, the ZeRO stage and offload: the fastest that fits the
    budget, or what is free of the device. None of it changes the mathematics; what is named stays; the result has what
    was chosen."""

    default_zero_stage: ClassVar[int] = 2

    @field_validator("memory_budget", mode="before")
    @classmethod
    def _is_size(cls, given: Any) -> str | None:
        try:
            holds_nothing = given is not None and parse_bytes(str(given)) <= 0
        except ConfigError as error:
            raise ValueError(str(error)) from None
        if holds_nothing:
            raise ValueError("a budget holds something; give what the run may take of a device, such as 6GiB")
        return None if given is None else str(given)

    @model_validator(mode="after")
    def _sound(self) -> Self:
        rules.check(
            rules.Facts(
                uses_deepspeed=None if self.name == "auto" else self.name == "deepspeed",
                zero_stage=self._stage,
                offload_optimizer=self.offload_optimizer,
                offload_parameters=self.offload_parameters,
                stream_layers=self.stream_layers,
                streams_together=self.stream_micro_batches != 1,
                streams_head=self.stream_head,
                nvme_path=self.nvme_path,
                has_template=self.ds_config is not None,
            )
        )
        return self

    @property
    def budget_bytes(self) -> int | None:
        """The budget in bytes; None where none is named."""
        return None if self.memory_budget is None else parse_bytes(self.memory_budget)

    def group_size(self, num_micro_batches: int) -> int:
        """Return how many micro-batches go through a layer before the next one.

        Args:
            num_micro_batches: of a step on one rank.
        """
        asked = self.stream_micro_batches
        return num_micro_batches if asked == "all" else min(asked, num_micro_batches)

    @property
    def _stage(self) -> int | None:
        """The stage as far as this section says it: a template of the user's own may set any."""
        if self.zero_stage is None and self.ds_config is None and self.asks_for_zero:
            return self.default_zero_stage
        return self.zero_stage

    @property
    def asks_for_zero(self) -> bool:
        """Whether something here is DeepSpeed's alone: a stage, offload or a template."""
        return bool(self.zero_stage or self.ds_config) or (self.offload_optimizer, self.offload_parameters) != (
            "none",
            "none",
        )
