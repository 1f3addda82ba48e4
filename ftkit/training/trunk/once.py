"""Settle whether the frozen trunk of a run is computed once, and have it computed."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ftkit.data.arrays import PreparedData, TokenSplit
from ftkit.data.batching import MicroBatch, Padding, collate
from ftkit.engine.resolve import ResolvedRun
from ftkit.errors import ConfigError, DeviceError, ModelError
from ftkit.machine.lock import locked
from ftkit.machine.process import ProcessContext, first_decides
from ftkit.machine.ranks import sum_of_ranks, together
from ftkit.models.trunk import entries, store
from ftkit.models.trunk.address import address_of, digest_trunk
from ftkit.models.trunk.build import Pass, check_closed, probed, write_shards
from ftkit.models.trunk.closed import close, spared
from ftkit.models.trunk.cut import AROUND, Cut, find_cut, has_trunk
from ftkit.units import format_bytes, format_seconds

Note = Callable[[str], None]
_NEWS_SECONDS = 30.0
"""Between two notes of how far the pass has come."""


@dataclass
class Whole:
    """A model before an engine has it: enough of one to try it out."""

    model: nn.Module
    device: torch.device
    dtype: torch.dtype
    process: ProcessContext

    def logits(self, micro_batch: MicroBatch) -> torch.Tensor:
        """Return logits."""
        logits: torch.Tensor = self.model(**micro_batch.inputs()).logits
        return logits


@dataclass(frozen=True)
class Computed:
    """What a trunk that ran once has left.

    Attributes:
        data: the splits with their hidden states.
        paths: split to its entry of the cache.
        cut: where the trunk ends.
        spared: the modules whose weights are not needed any more.
    """

    data: PreparedData
    paths: Mapping[str, Path]
    cut: Cut
    spared: tuple[str, ...]


def wants_trunk(run: ResolvedRun, model: nn.Module, num_passes: float) -> bool:
    """Return whether the trunk of a run is to be computed once, as far as the settings say.

    Args:
        run: the run.
        model: what `build_model` returned.
        num_passes: over the training split.

    Raises:
        ConfigError: it is asked for, and nothing is frozen below what trains.
    """
    is_frozen = has_trunk(model)
    if run.config.cache.trunk == "on" and not is_frozen:
        raise ConfigError(
            f"cache.trunk=on, and method {run.config.method.name} trains in all layers, so nothing below is frozen; "
            "give --train-top-layers, or leave --trunk-cache out"
        )
    return is_frozen and run.may_cache(num_passes)


def with_hidden(data: PreparedData, held: Mapping[str, store.Hidden]) -> PreparedData:
    """Return data whose splits have hidden states.

    Args:
        data: without.
        held: split to its hidden states.
    """
    splits: dict[str, Any] = {name: replace(split, hidden=held[name]) for name, split in data.named.items()}
    return replace(data, **splits)


def compute_once(run: ResolvedRun, whole: Whole, data: PreparedData, padding: Padding, note: Note) -> Computed | None:
    """Take the hidden states of all sequences from the cache, or compute them and put them there; close the model.

    Args:
        run: the run.
        whole: its model on the device, which is closed afterwards.
        data: its splits; every rank calls with the same ones.
        padding: what fills up, and where.
        note: told what is done.

    Returns:
        The data with hidden states, and where they are; None where this model steps aside and runs whole as ever.

    Raises:
        ModelError, DeviceError: it cannot be done, and `cache.trunk=on` asks for it.
    """
    try:
        return _compute_once(run, whole, data, padding, note)
    except (ModelError, DeviceError) as error:
        if run.config.cache.trunk == "on":
            raise type(error)(f"cache.trunk=on: {error}") from error
        note(f"the frozen layers run in each epoch: {error}")
        return None


@dataclass(frozen=True)
class _Place:
    """The place of a split's hidden states in the cache."""

    path: Path
    layout: store.Layout
    about: entries.About


def _compute_once(run: ResolvedRun, whole: Whole, data: PreparedData, padding: Padding, note: Note) -> Computed:
    process = whole.process
    if process.local_world_size < process.world_size and run.config.cache.trunk == "auto":
        raise DeviceError("the ranks are on several machines; where they share a folder, --trunk-cache on uses it")
    work = together(process, lambda: _prepared(run, whole, data.train, padding))
    # The others have the same weights, so the first rank alone reads them.
    trunk = first_decides(process, lambda: digest_trunk(whole.model, work.cut))
    splits = data.named
    places = {name: _place(run, work, trunk, split, name) for name, split in splits.items()}
    started = time.perf_counter()
    filling = _Filling(work, process, run.config.cache.limit_bytes, [one.path for one in places.values()], note)
    num_bytes = sum(filling.fill(splits[name], place) for name, place in places.items())
    held = {name: store.Hidden(one.path, one.layout, is_pooled=work.cut.is_pooled) for name, one in places.items()}
    without = spared(whole.model, work.cut)
    close(whole.model, work.cut)
    took = (
        f"computed once, in {format_seconds(time.perf_counter() - started)}, and kept"
        if num_bytes
        else "not run, since it is"
    )
    num_kept = sum(place.about.num_bytes for place in places.values())
    note(said_of_the_cache(work.cut, f"is {took}", num_kept, held.values()))
    return Computed(with_hidden(data, held), {name: place.path for name, place in places.items()}, work.cut, without)


def said_of_the_cache(cut: Cut, took: str, num_bytes: int, held: Iterable[store.Hidden]) -> str:
    """Return what a run says of its frozen trunk.

    Args:
        cut: where it ends.
        took: that it ran once, or not at all.
        num_bytes: that are kept.
        held: the hidden states of each split.
    """
    errors = [one.error for one in held if one.error is not None]
    rounded = f", in 8 bits, which are off by {max(errors):.2%} of a vector's length" if errors else ""
    return f"trunk: what is frozen below {_plain(cut.entry)} {took} in the cache ({format_bytes(num_bytes)}{rounded})"


@dataclass(frozen=True)
class _Filling:
    """The ranks of a run, making entries of the cache whole.

    Attributes:
        work: how sequences run through the trunk.
        process: the place of this process.
        limit: of the whole cache, in bytes.
        keep: the entries of this run.
        note: told what is done.
    """

    work: Pass
    process: ProcessContext
    limit: int
    keep: list[Path]
    note: Note

    def fill(self, split: TokenSplit, place: _Place) -> int:
        """Make an entry whole; return the bytes that all ranks have written."""
        path, layout, process = place.path, place.layout, self.process
        own = range(process.rank, len(layout.shards), process.world_size)
        with _one_run(process, path, self.note):
            first_decides(process, lambda: entries.clear_unfinished(path))
            missing = store.missing_shards(path, own)
            num_bytes = sum_of_ranks(process, sum(map(layout.bytes_of, missing)))
            if num_bytes:
                for gone in first_decides(process, lambda: entries.make_room(num_bytes, self.limit, self.keep)):
                    self.note(f"trunk: {gone.name} has made room in the cache")
                told = _News(place.about, num_bytes // process.world_size, self.note)
                together(process, lambda: write_shards(self.work, split, layout, path, missing, told.written))
            first_decides(process, lambda: entries.finish(path, place.about))
        return num_bytes


def _prepared(run: ResolvedRun, whole: Whole, train: TokenSplit, padding: Padding) -> Pass:
    """Find the cut of a model and try it out; return how sequences run through the trunk."""
    cut = find_cut(whole.model, collate(train, probed(train), padding, whole.device))
    work = Pass(whole.model, cut, run.config.batch, padding, whole.device, run.hidden_dtype)
    check_closed(work, train)
    return work


def _place(run: ResolvedRun, work: Pass, trunk: str, split: TokenSplit, name: str) -> _Place:
    layout = store.Layout.of(split.lengths, work.cut.width, work.dtype, is_pooled=work.cut.is_pooled)
    address = address_of(trunk, split, work.padding, (work.cut.dtype, work.dtype), work.device.type)
    about = entries.About(
        model=run.config.model.name,
        split=f"{name} of {run.config.data.dataset}",
        entry=_plain(work.cut.entry),
        dtype=str(work.dtype).removeprefix("torch."),
        num_sequences=len(split),
        num_rows=int(layout.num_rows.sum()),
        num_bytes=sum(map(layout.bytes_of, range(len(layout.shards)))),
    )
    return _Place(entries.folder() / address[:32], layout, about)


@contextmanager
def _one_run(process: ProcessContext, path: Path, note: Note) -> Iterator[None]:
    """Let one run at a time work on an entry; the first rank holds the lock for all."""
    with ExitStack() as stack:

        def waiting(owner: str) -> None:
            note(f"trunk: {owner} is computing the same; waiting for it")

        first_decides(process, lambda: bool(stack.enter_context(locked(path, waiting, entries.ELSEWHERE))))
        yield


class _News:
    """Says now and then how far the pass has come."""

    def __init__(self, about: entries.About, num_bytes: int, note: Note) -> None:
        self._about, self._num_bytes, self._note = about, num_bytes, note
        self._done, self._said = 0, time.perf_counter()
        note(f"trunk: computing {about.num_sequences:,} sequences ({about.split})")

    def written(self, num_bytes: int) -> None:
        """Count the bytes of a shard."""
        self._done += num_bytes
        if time.perf_counter() - self._said > _NEWS_SECONDS:
            self._said = time.perf_counter()
            self._note(f"trunk: {self._done / max(1, self._num_bytes):.0%} of {self._about.split}")


def _plain(entry: str) -> str:
    """Return a module's name in the model that adapters are around."""
    return entry.removeprefix(AROUND)
