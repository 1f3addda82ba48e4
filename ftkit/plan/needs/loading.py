"""The host's memory while a run loads its weights.

The weights of safetensors are mapped: a tensor is a view of its file, whose pages come into memory when they are read
and go with the last tensor of that file. So the host holds

    the files' type              4 bits    until all is on the GPU
    that of the run              no        the pages of one file
    that of the run              yes       the pages of one file, and all weights as they are once they are packed
    another, or not known        either    all weights, since each is converted to memory of its own

and all weights as well where experts are stored one by one, since they are stacked in memory of their own. The system
may keep the pages of more files than one, as long as nothing else needs the memory.
"""

from pathlib import Path

from ftkit.models.methods.lora import Qlora
from ftkit.plan.inputs.case import Case, Counts
from ftkit.plan.inputs.stored import stored_dtype
from ftkit.plan.needs.mixture import find_mixture

FILE_BYTES = 5 * 10**9
"""Of the largest file of a model that is published in parts (transformers 4, `max_shard_size` of `save_pretrained`)."""


def loading_bytes(case: Case, counts: Counts, weight_bytes: int) -> int:
    """Return what the host of a rank holds of the weights, at most, before they are on its GPU.

    Args:
        case: the run.
        counts: of its weights.
        weight_bytes: of a rank's weights on its device, packed or not.
    """
    stored = stored_dtype(case.run.config, case.architecture)
    if stored != case.run.dtype or find_mixture(case.architecture) is not None:
        return counts.load_bytes
    file = min(counts.load_bytes, _file_bytes(case.run.config.model.name))
    if not isinstance(case.run.config.method, Qlora):
        return file
    # Each rank packs all weights before they are partitioned.
    return file + weight_bytes * (case.run.devices.world_size if case.run.partitions_weights else 1)


def stored_bytes_beside(case: Case, counts: Counts) -> int:
    """Return the bytes of the files whose pages lie beside the weights of a CPU, once all are converted from them.

    transformers keeps all files open until it has all weights.

    Args:
        case: the run.
        counts: of its weights.
    """
    stored = stored_dtype(case.run.config, case.architecture)
    if stored is None or stored == case.run.dtype:
        return 0
    return counts.load_bytes // case.run.dtype.itemsize * stored.itemsize


def _file_bytes(name: str) -> int:
    """Return the bytes of the largest file of a model: of a folder its own, else as models are published."""
    folder = Path(name)
    sizes = [file.stat().st_size for file in folder.glob("*.safetensors")] if folder.is_dir() else []
    return max(sizes, default=FILE_BYTES)
