"""Begin from the cache: where it holds all that a frozen trunk would make, the trunk is not loaded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ftkit.data.arrays import PreparedData
from ftkit.data.batching import Padding, count_steps
from ftkit.engine.resolve import ResolvedRun
from ftkit.machine.process import ProcessContext, first_decides
from ftkit.machine.ranks import sum_of_ranks, together
from ftkit.models.methods import method_of
from ftkit.models.sources.source import Source
from ftkit.models.trunk import entries, known, store
from ftkit.models.trunk.closed import close
from ftkit.models.trunk.known import Known
from ftkit.training.trunk.once import Computed, said_of_the_cache, with_hidden

_OF_NO_TRUNK = {"head", "rank", "alpha", "dropout", "name", "new_head", "recompute", "offload_activations"}
"""Fields of a model's section and of a method's that decide nothing of the trunk: not what it makes, nor its end."""


@dataclass(frozen=True)
class Key:
    """Looks for what is known of a run's trunk by the files of its model.

    Attributes:
        run: the run.
        source: where the weights are.
        architecture: of the model, with the labels of the data.
        data: its splits.
        num_passes: over the training split.
        value: None where the files are not here yet, or the run has no use for it.
    """

    run: ResolvedRun
    source: Source
    architecture: Any
    data: PreparedData
    num_passes: float
    value: str | None

    @classmethod
    def of(
        cls,
        run: ResolvedRun,
        process: ProcessContext,
        source: Source,
        architecture: Any,
        data: PreparedData,
        num_steps: int,
    ) -> "Key":
        """Return the key of a run; the first rank reads the files for all.

        Args:
            run: the run.
            process: the place of this process; every process of the job calls this.
            source: where the weights are.
            architecture: of the model.
            data: its splits.
            num_steps: of the run.
        """
        num_passes = num_steps / count_steps(data.train.num_texts, run.config.batch.global_batch_size, 1.0, None)
        is_useful = method_of(run.config).leaves_trunk and run.config.cache.trunk != "off"
        value = first_decides(process, lambda: _value(run, source, architecture, data)) if is_useful else None
        return cls(run, source, architecture, data, num_passes, value)

    def keep(self, computed: Computed, padding: Padding, *, is_alone: bool) -> None:
        """Write down what this run has found out, for the next one.

        Args:
            computed: what `compute_once` returned.
            padding: what fills up, and where.
            is_alone: whether sequences run one at a time, since padding changes what the model makes of them.
        """
        value = self.value or _value(self.run, self.source, self.architecture, self.data)  # the files have come since
        if value is not None:
            names = {split: path.name for split, path in computed.paths.items()}
            known.keep(value, Known(computed.cut, padding, is_alone, computed.spared, names))


def _value(run: ResolvedRun, source: Source, architecture: Any, data: PreparedData) -> str | None:
    config = run.config
    settings = (
        config.task,
        {key: value for key, value in config.model.model_dump().items() if key not in _OF_NO_TRUNK},
        config.method.name,
        {key: value for key, value in config.method.model_dump().items() if key not in _OF_NO_TRUNK},
        config.cache.dtype,
        run.precision,
        run.devices.device_type,
        (config.batch.micro_batch_size, config.batch.micro_batch_tokens),
    )
    return known.key_of(source, architecture, data.named, settings)


@dataclass(frozen=True)
class Warm:
    """A run whose hidden states are all in the cache.

    Attributes:
        known: what was found out of its trunk.
        data: its splits with their hidden states.
    """

    known: Known
    data: PreparedData

    def settled(self, run: ResolvedRun, model: nn.Module, tokenizer: Any) -> tuple[ResolvedRun, Padding, PreparedData]:
        """Let a model that was loaded without its trunk run from above it, and settle the padding as it was found.

        Args:
            run: the run.
            model: closed here.
            tokenizer: learns the side, as in `settle_padding`.

        Returns:
            The run, how it pads, and its data with hidden states.
        """
        found = self.known
        close(model, found.cut, is_loaded=False)
        left = next((name for name, one in model.named_parameters() if one.is_meta), None)
        assert left is None, f"{left} is needed above {found.cut.entry}, and was not loaded"
        if found.padding.side == "left":
            tokenizer.padding_side = "left"
        run = run.cut_by(run.config.batch.one_at_a_time()) if found.is_alone else run
        return run, found.padding, self.data


def find_warm(key: Key, process: ProcessContext, note: Callable[[str], None]) -> Warm | None:
    """Look whether the cache has all that a run's trunk would make; every shard is compared with its digest.

    Args:
        key: of the run.
        process: the place of this process; every process of the job calls this.
        note: told that nothing has to run.

    Returns:
        What to go on with; None where the trunk has to be loaded.
    """
    run = key.run
    if key.value is None or not run.may_cache(key.num_passes) or process.local_world_size < process.world_size:
        return None
    value = key.value
    found = first_decides(process, lambda: known.look_up(value))
    if found is None or found.entries.keys() != key.data.named.keys():
        return None
    if sum_of_ranks(process, _num_missing(run, process, found, key.data)):
        return None
    held = together(process, lambda: _opened(run, found, key.data))
    first_decides(process, lambda: entries.touch(found.paths.values()))
    num_bytes = sum(about.num_bytes for path in found.paths.values() if (about := entries.read_about(path)))
    note(said_of_the_cache(found.cut, "is not run nor loaded, since it is", num_bytes, held.values()))
    return Warm(found, with_hidden(key.data, held))


def _num_missing(run: ResolvedRun, process: ProcessContext, found: Known, data: PreparedData) -> int:
    """Return how many shards this rank, which looks at its part of them, finds missing or damaged."""
    missing = 0
    for name, split in data.named.items():
        path = found.paths[name]
        layout = store.Layout.of(split.lengths, found.cut.width, run.hidden_dtype, is_pooled=found.cut.is_pooled)
        if entries.read_about(path) is None:
            return len(layout.shards)
        missing += len(store.missing_shards(path, range(process.rank, len(layout.shards), process.world_size)))
    return missing


def _opened(run: ResolvedRun, found: Known, data: PreparedData) -> dict[str, store.Hidden]:
    return {
        name: store.Hidden(
            found.paths[name],
            store.Layout.of(split.lengths, found.cut.width, run.hidden_dtype, is_pooled=found.cut.is_pooled),
            is_pooled=found.cut.is_pooled,
        )
        for name, split in data.named.items()
    }
