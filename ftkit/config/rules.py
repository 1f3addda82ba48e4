"""The rulebook of settings that do not go together: each rule with its reason and its remedy.

The configuration checks its sections by it, `engine.resolve` checks a whole run, the planner's search leaves out what
it rules out, and the docs print it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum


class Force(Enum):
    """The force of a rule."""

    REFUSED = "refused"
    """It does not work, so no run begins with it."""
    UNWISE = "left out of a search"
    """It works, and costs more than it saves: a search does not offer it to whoever has not asked for it."""


@dataclass(frozen=True)
class Facts:
    """The facts that rules look at; a rule that asks for an unknown fact does not apply.

    Attributes:
        uses_deepspeed: whether DeepSpeed runs it; None: its launcher decides.
        zero_stage: what is partitioned, 0 under the plain engine; None: a template says it.
        offload_optimizer: where the optimizer's state lives: `none`, `cpu` or `nvme`.
        offload_parameters: where the weights live.
        stream_layers: where frozen layers that are streamed come from: `none`, `ram` or `disk`.
        streams_together: whether several micro-batches go through a streamed layer before the next one.
        streams_head: whether the head is streamed too.
        nvme_path: the folder on the disk.
        has_template: whether a template of the user's own says what is offloaded.
        cuts: the keys that cut the batch.
        has_end: whether training ends.
        optimizer: its name.
        trains_all: whether every weight trains.
        precision: as it was asked for.
        device_type: `cuda`, `cpu` or another.
        has_bf16: whether the device multiplies bf16 in hardware.
        world_size: ranks.
        uses_dora: whether adapters train magnitudes beside directions.
        packs_weights: whether frozen weights are in 4 bits.
        tiles_mlps: whether the MLPs run in tiles.
        recomputes_cheaply: whether some layers recompute at the level `cheap`.
        offloads_activations: whether what layers keep for their backward waits on the host.
        is_lean: whether exact replacements that cost less run, such as the loss in chunks.
        is_fitted: whether the planner is to choose what fits.
        is_planned: whether the planner is asked at all.
    """

    uses_deepspeed: bool | None = None
    zero_stage: int | None = None
    offload_optimizer: str = "none"
    offload_parameters: str = "none"
    stream_layers: str = "none"
    streams_together: bool = False
    streams_head: bool = False
    nvme_path: str | None = None
    has_template: bool = False
    cuts: tuple[str, ...] = ()
    has_end: bool = True
    optimizer: str | None = None
    trains_all: bool | None = None
    precision: str | None = None
    device_type: str | None = None
    has_bf16: bool | None = None
    world_size: int | None = None
    uses_dora: bool = False
    packs_weights: bool = False
    tiles_mlps: bool = False
    recomputes_cheaply: bool = False
    offloads_activations: bool = False
    is_lean: bool = True
    is_fitted: bool = False
    is_planned: bool = True

    @property
    def offloads(self) -> set[str]:
        """The places that something is offloaded to."""
        return {self.offload_optimizer, self.offload_parameters} - {"none"}

    @property
    def streams(self) -> bool:
        """Whether layers are streamed."""
        return self.stream_layers != "none"

    @property
    def unpacks_for_dora(self) -> bool:
        """Whether DoRA reads weights in 4 bits."""
        return self.uses_dora and self.packs_weights

    @property
    def is_below_stage_3(self) -> bool:
        """Whether weights are known to stay whole."""
        return self.zero_stage is not None and self.zero_stage < 3


@dataclass(frozen=True)
class Rule:
    """A combination that is ruled out.

    Attributes:
        what: the combination.
        reason: why it does not work, or does not pay.
        remedy: what to do instead.
        applies: whether the facts are such a combination.
        force: how far the rule goes.
        is_of_the_device: whether another device could do it.
    """

    what: str
    reason: str
    remedy: str
    applies: Callable[[Facts], bool]
    force: Force = Force.REFUSED
    is_of_the_device: bool = False

    @property
    def sentence(self) -> str:
        """The sentence for the user."""
        return f"{self.what}: {self.reason}; {self.remedy}"


RULES = (
    Rule(
        "micro_batch_size and micro_batch_tokens both cut the batch",
        "a micro-batch is bounded by its sequences or by its padded tokens",
        "give --micro-batch-size or --micro-batch-tokens alone",
        lambda facts: len(facts.cuts) > 1,
    ),
    Rule(
        "neither epochs nor max_steps",
        "training would not end",
        "give one of them: --epochs 3 or --max-steps 1000",
        lambda facts: not facts.has_end,
    ),
    Rule(
        "ZeRO, offload or a template on the plain engine",
        "they are DeepSpeed's",
        "leave them out, or give --engine deepspeed",
        lambda facts: (
            facts.uses_deepspeed is False and (bool(facts.zero_stage) or facts.has_template or bool(facts.offloads))
        ),
    ),
    Rule(
        "ZeRO stage 0 under DeepSpeed",
        "stage 0 partitions nothing: that is the plain engine",
        "give --engine plain, or --zero-stage 2",
        lambda facts: facts.uses_deepspeed is True and facts.zero_stage == 0,
    ),
    Rule(
        "weights offloaded without ZeRO-3",
        "only stage 3 partitions weights, and only partitioned weights are offloaded",
        "give --zero-stage 3 (in a template stage 3), or --offload-parameters none",
        lambda facts: facts.offload_parameters != "none" and facts.is_below_stage_3,
    ),
    Rule(
        "the optimizer offloaded without ZeRO",
        "ZeRO is what moves masters and moments to the host",
        "give --zero-stage 1, 2 or 3, or --offload-optimizer none",
        lambda facts: facts.offload_optimizer != "none" and facts.zero_stage == 0,
    ),
    Rule(
        "offload to a disk without ZeRO-3",
        "only stage 3 reads and writes a disk",
        "give --zero-stage 3 (in a template stage 3), or offload to cpu: --offload-optimizer cpu",
        lambda facts: "nvme" in facts.offloads and facts.is_below_stage_3,
    ),
    Rule(
        "offload to a disk without its folder",
        "somewhere the partitions have to lie",
        "name a folder on a fast disk: --set engine.nvme_path=FOLDER",
        lambda facts: "nvme" in facts.offloads and facts.nvme_path is None,
    ),
    Rule(
        "optimizer and weights offloaded to different places",
        "no template of ds_configs/ does that",
        "offload both to the same place, or write a template and name it: --ds-config FILE",
        lambda facts: len(facts.offloads) > 1 and not facts.has_template,
    ),
    Rule(
        "adamw_8bit, paged_adamw or paged_adamw_8bit under DeepSpeed",
        "ZeRO shares flat moments out over the ranks, and bitsandbytes keeps its own, in blocks",
        "give --optimizer adamw, or --engine plain without ZeRO",
        lambda facts: facts.uses_deepspeed is True and facts.optimizer not in (None, "adamw"),
    ),
    Rule(
        "layers streamed under DeepSpeed, or beside ZeRO and offload",
        "the plain engine streams them, and DeepSpeed moves weights in its own way",
        "give --set engine.stream_layers=none, or --engine plain without ZeRO, offload and template",
        lambda facts: (
            facts.streams
            and (facts.uses_deepspeed is True or bool(facts.zero_stage) or facts.has_template or bool(facts.offloads))
        ),
    ),
    Rule(
        "layers streamed where every weight trains",
        "what is streamed is read and never written",
        "give --method lora, qlora or feature-extraction, or offload with --zero-stage 3",
        lambda facts: facts.streams and facts.trains_all is True,
    ),
    Rule(
        "layers streamed under DoRA",
        "it reads every weight when it begins",
        "give --set method.use_dora=false or --set engine.stream_layers=none",
        lambda facts: facts.streams and facts.uses_dora,
    ),
    Rule(
        "several micro-batches taken through a layer where no layer is streamed",
        "it saves reading streamed layers again, and none are streamed",
        "give --set engine.stream_micro_batches=1, or add --set engine.stream_layers=disk",
        lambda facts: facts.streams_together and not facts.streams,
    ),
    Rule(
        "a streamed head where no layer is streamed",
        "it comes in the place of the layers that are there",
        "give --set engine.stream_head=false, or add --set engine.stream_layers=disk",
        lambda facts: facts.streams_head and not facts.streams,
    ),
    Rule(
        "a streamed head without model.lean",
        "the backward of logits that are whole needs the head after it has left",
        "give --set engine.stream_head=false or --set model.lean=true",
        lambda facts: facts.streams_head and not facts.is_lean,
    ),
    Rule(
        "layers streamed from RAM on a CPU",
        "there the device's memory is that same RAM",
        "give --set engine.stream_layers=disk",
        lambda facts: facts.stream_layers == "ram" and facts.device_type == "cpu",
        is_of_the_device=True,
    ),
    Rule(
        "activations offloaded on a CPU",
        "there the device's memory is that of the host",
        "give --set model.offload_activations=false; --recompute layer saves as much",
        lambda facts: facts.offloads_activations and facts.device_type == "cpu",
        is_of_the_device=True,
    ),
    Rule(
        "bf16 on a GPU before Ampere",
        "the hardware does not multiply bf16",
        "give --precision fp16 or auto",
        lambda facts: facts.precision == "bf16" and facts.device_type == "cuda" and facts.has_bf16 is False,
        is_of_the_device=True,
    ),
    Rule(
        "fp16 on a CPU",
        "its matrix products are slower than those of fp32 by orders of magnitude",
        "give --precision auto, bf16 or fp32",
        lambda facts: facts.precision == "fp16" and facts.device_type == "cpu",
        is_of_the_device=True,
    ),
    Rule(
        "DoRA over weights in 4 bits under ZeRO-3 on a CPU",
        "to unpack a weight there PEFT puts another one in its place, which is not the one that is partitioned",
        "give --zero-stage 2, --set method.use_dora=false, or --method lora",
        lambda facts: facts.unpacks_for_dora and facts.zero_stage == 3 and facts.device_type == "cpu",
        is_of_the_device=True,
    ),
    Rule(
        "MLPs in tiles where layers recompute at the level cheap",
        "a tile keeps its input alone, and cheap keeps all matrix products",
        "give --recompute layer or none, or --set model.mlp_tile_tokens=null",
        lambda facts: facts.tiles_mlps and facts.recomputes_cheaply,
    ),
    Rule(
        "MLPs in tiles under ZeRO-3",
        "their weights would be gathered anew for each tile",
        "give --zero-stage 2, or --set model.mlp_tile_tokens=null",
        lambda facts: facts.tiles_mlps and facts.zero_stage == 3,
    ),
    Rule(
        "engine.fit without a plan",
        "it is the plan that finds what fits",
        "leave out --no-plan, or --fit",
        lambda facts: facts.is_fitted and not facts.is_planned,
    ),
    Rule(
        "ZeRO without offload on one device",
        "with one rank there is nothing to partition, and its buckets cost memory",
        "give --engine plain, or --offload-optimizer cpu",
        lambda facts: facts.world_size == 1 and bool(facts.zero_stage) and not facts.offloads,
        Force.UNWISE,
    ),
    Rule(
        "offload to the host's memory on a CPU",
        "the device's memory is the host's, so nothing is saved, and each update is copied",
        "leave offload out, or offload to nvme",
        lambda facts: facts.device_type == "cpu" and "cpu" in facts.offloads,
        Force.UNWISE,
    ),
    Rule(
        "the optimizer alone offloaded where adapters or a head train",
        "their masters and moments are a small part of what is held, and each update is copied",
        "leave offload out, or offload the weights too with ZeRO-3",
        lambda facts: (
            facts.trains_all is False and facts.offload_optimizer != "none" and facts.offload_parameters == "none"
        ),
        Force.UNWISE,
    ),
)


def broken_rules(facts: Facts, force: Force) -> Iterator[Rule]:
    """Yield the rules of one force that some facts break, in the order of the book."""
    return (rule for rule in RULES if rule.force is force and rule.applies(facts))


def check(facts: Facts) -> None:
    """Refuse what does not work.

    Args:
        facts: of a section of a configuration.

    Raises:
        ValueError: in the rule's own sentence.
    """
    for rule in broken_rules(facts, Force.REFUSED):
        raise ValueError(rule.sentence)
