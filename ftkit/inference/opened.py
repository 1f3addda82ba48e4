"""Open a trained model by a run's folder, an exported folder or a name of the hub, to answer as it was scored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ftkit.config.engine import EngineConfig
from ftkit.config.files import load_config
from ftkit.config.methods import methods
from ftkit.config.paths import from_root, is_there, looks_like_path
from ftkit.config.training import OptimizerConfig
from ftkit.config.tree import RunConfig, Task
from ftkit.data.arrays import Labels
from ftkit.data.batching import MicroBatch
from ftkit.data.standard import Standard
from ftkit.engine.resolve import Devices, ResolvedRun, resolve
from ftkit.errors import ModelError
from ftkit.machine.environment import prepare_environment
from ftkit.machine.memory import quiet_collector
from ftkit.machine.process import ProcessContext
from ftkit.models.build import build_model
from ftkit.models.objective import Objective, objective_of
from ftkit.models.sources.adapters import classifies, find_adapter
from ftkit.models.sources.gguf import as_safetensors
from ftkit.models.sources.source import (
    Source,
    load_tokenizer,
    own_config,
    own_label_kind,
    own_label_names,
    resolve_source,
)
from ftkit.models.sources.source import (
    load_config as load_architecture,
)
from ftkit.models.sources.start import settle_start
from ftkit.models.streaming.stream import place
from ftkit.records.files import CONFIG, MODEL, RECORD
from ftkit.records.origin import SETTINGS, kept_labels

Note = Callable[[str], None]


@dataclass
class Reader:
    """A model that only answers, whole on one device; see `ftkit.engine.protocol.Scorer`."""

    model: nn.Module
    dtype: torch.dtype
    process: ProcessContext
    objective: Objective
    name: str = "plain"
    shares_forwards: bool = False

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.process.device

    def begin_step(self, num_micro_batches: int) -> None:
        """Do nothing: a forward is a forward."""

    def rewind(self) -> int:
        """Return 0: there is one rank, and nothing to take again."""
        return 0

    def loss(self, micro_batch: MicroBatch) -> torch.Tensor:
        """Return the loss summed over the targets of a micro-batch."""
        return self.objective.loss_sum(self.model, micro_batch)

    def logits(self, micro_batch: MicroBatch) -> torch.Tensor:
        """Return logits."""
        logits: torch.Tensor = self.model(**micro_batch.inputs()).logits
        return logits

    def sum_over_ranks(self, value: torch.Tensor) -> torch.Tensor:
        """Return the value: there is one rank."""
        return value


@dataclass(frozen=True)
class Opened:
    """A trained model and what it takes to ask it.

    Attributes:
        name: as it was named.
        run: the run that made it, on one device of this machine.
        tokenizer: its own.
        labels: what it answers; None of a language model.
        reader: the model.
    """

    name: str
    run: ResolvedRun
    tokenizer: Any
    labels: Labels | None
    reader: Reader

    @property
    def config(self) -> RunConfig:
        """The configuration of the run."""
        return self.run.config


def labels_of(name: str, source: Source, task: Task) -> Labels | None:
    """Return a classifier's labels, as its run kept them or else of the model's configuration; None of other models.

    Args:
        name: of the model.
        source: where it is.
        task: what it is for.

    Raises:
        ModelError: it is to classify and has no head for that.
    """
    if task != "sequence-classification":
        return None
    line = kept_labels(from_root(name)) if is_there(name) else None
    if line is not None:
        return Labels(line.kind, line.names, Standard(line.mean, line.deviation))
    names = own_label_names(source)
    if names is None:
        raise ModelError(
            f"{name} has no head that classifies; name the folder of a run, or a model that was fine-tuned"
        )
    return Labels(own_label_kind(source) or "single", names)


def find_run(name: str) -> Path | None:
    """Return the folder with the configuration and the record of a run; None where a model was not made by ftkit."""
    if not is_there(name):
        return None
    path = from_root(name)
    places = (path, path.parent) if path.name == MODEL else (path,)
    return next((place for place in places if all((place / file).is_file() for file in (CONFIG, RECORD))), None)


def find_settings(name: str) -> Path | None:
    """Return the file with the settings of the run that made a model: the run's own, or that beside a saved model.

    Args:
        name: as `open_config`.
    """
    run = find_run(name)
    if run is not None:
        return run / CONFIG
    beside = from_root(name) / SETTINGS if is_there(name) else None
    return beside if beside is not None and beside.is_file() else None


def open_config(name: str, settings: Sequence[str] = ()) -> RunConfig:
    """Return the configuration of a trained model, on one device, without what belongs to training alone.

    Args:
        name: a run's folder, an exported folder, or any model of transformers or PEFT.
        settings: changes, as `key=value`.

    Raises:
        ConfigError: a setting is not valid.
        ModelError: the model is not there.
    """
    file = find_settings(name)
    own = [f"model.name={name}", "model.new_head=false"]
    own += [] if file else [f"task={_task_of(name)}", f"method.name={'lora' if find_adapter(name) else 'full'}"]
    config = load_config(file, settings=[*own, *settings])
    engine = EngineConfig(
        name="plain", stream_layers=config.engine.stream_layers, stream_head=config.engine.stream_head
    )
    model = config.model.model_copy(update={"offload_activations": False})  # there is no backward
    return config.model_copy(update={"engine": engine, "model": model, "optimizer": OptimizerConfig()})


def _streamed_from_here(config: RunConfig, process: ProcessContext, note: Note) -> RunConfig:
    """Return a run whose layers come from where this machine has them: on a CPU the host's memory is the device's."""
    if config.engine.stream_layers != "ram" or process.device.type != "cpu":
        return config
    note("the run streamed its frozen layers from the host's memory to a GPU; here they come from the disk")
    return config.model_copy(update={"engine": config.engine.model_copy(update={"stream_layers": "disk"})})


@quiet_collector(trusts=True)  # nearly all of what is made here stays
def open_model(name: str, config: RunConfig, note: Note = lambda _: None) -> Opened:
    """Load a trained model as it was scored: in its precision, over weights that are packed as they were.

    Args:
        name: as `open_config`.
        config: what that returned.
        note: told what is unusual.

    Returns:
        The model, ready to answer.

    Raises:
        FtkitError: naming what was given, what was wanted and what to try.
    """
    prepare_environment(config)
    process = ProcessContext()
    run = resolve(_streamed_from_here(config, process, note), Devices.of(process))
    source = as_safetensors(resolve_source(config.model, config.task), note)
    tokenizer = load_tokenizer(source)
    labels = labels_of(name, source, config.task)
    names, kind = (labels.names, labels.kind) if labels else (None, None)
    architecture = load_architecture(source, names, tokenizer.pad_token_id, kind)
    settled = settle_start(run.config, source, tokenizer)
    if source.adapter is None:  # the whole of it is there, whatever trained it
        settled = settled.model_copy(update={"method": methods()["full"]()})
    model = build_model(settled, source, architecture, run.dtype)
    model.requires_grad_(False)
    reader = Reader(place(model, process.device).eval(), run.dtype, process, objective_of(settled, architecture, model))
    return Opened(name, run, tokenizer, labels, reader)


def _task_of(name: str) -> Task:
    """Return what a model that ftkit did not make is for, by its configuration."""
    if name.endswith(".gguf"):
        return "causal-lm"
    if looks_like_path(name) and not is_there(name):
        raise ModelError(f"no model at {name}; give a run's folder, a folder that a model was saved in, or a hub name")
    adapter = find_adapter(name)
    if adapter is not None:
        return "sequence-classification" if classifies(adapter) else "causal-lm"
    source = resolve_source(load_config(settings=[f"model.name={name}"]).model, "sequence-classification")
    if source.gguf_file is not None:
        return "causal-lm"
    kinds = own_config(source).architectures or ()
    return "sequence-classification" if any("ForSequenceClassification" in kind for kind in kinds) else "causal-lm"
