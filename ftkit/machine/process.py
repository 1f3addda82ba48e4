"""The place of this process in a job; the only reader of what a launcher sets (RANK, WORLD_SIZE, MASTER_ADDR ...)."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, cast

from ftkit.errors import DeviceError, FtkitError, PeerLostError
from ftkit.machine import foreign
from ftkit.machine.launcher import launchers

if TYPE_CHECKING:
    import torch
    from torch.distributed.distributed_c10d import Store

Launcher = Literal["none", "deepspeed", "torchrun"]
Choice = TypeVar("Choice")

_PEER_ENDED = "another rank of this job ended early"
TIMEOUT_SECONDS = 600.0
"""As long as NCCL waits by itself; gloo would wait half an hour."""


@dataclass(frozen=True)
class ProcessContext:
    """One process of a job."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    launcher: Launcher = "none"
    local_world_size: int = 1
    """Processes of the job on this machine."""
    launchers: tuple[int, ...] = field(default=(), compare=False)
    """The launcher's processes above this one when it began."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "ProcessContext":
        """Read what the launcher has set.

        The deepspeed launcher sets CROSS_SIZE beside the usual three (deepspeed/launcher/launch.py); torchrun, and
        any other that sets the three, is taken for torchrun.

        Args:
            environment: variables to values.

        Returns:
            The place; alone where nothing is set.

        Raises:
            DeviceError: the variables contradict one another or are not numbers.
        """
        if "RANK" not in environment:
            return cls(launchers=launchers())
        try:
            rank, world_size = int(environment["RANK"]), int(environment.get("WORLD_SIZE", "1"))
            local_rank = int(environment.get("LOCAL_RANK", "0"))
            # torchrun's name, and that of the deepspeed launcher
            here = environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE") or str(world_size)
            local_world_size = int(here)
        except ValueError as error:
            raise DeviceError(f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers ({error}); unset them") from None
        if not 0 <= rank < world_size:
            raise DeviceError(f"RANK={rank} is not below WORLD_SIZE={world_size}; start ftkit through a launcher")
        launcher: Launcher = "deepspeed" if "CROSS_SIZE" in environment else "torchrun"
        return cls(rank, world_size, local_rank, launcher, local_world_size, launchers())

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    @property
    def device(self) -> "torch.device":
        """The accelerator of this process, else the CPU."""
        import torch

        accelerator = torch.accelerator.current_accelerator(check_available=True)
        if accelerator is None:
            return torch.device("cpu")
        if self.local_rank >= torch.accelerator.device_count():
            raise DeviceError(
                f"local rank {self.local_rank} has no device: this machine has {torch.accelerator.device_count()}; "
                "start at most one process per device"
            )
        return torch.device(accelerator.type, self.local_rank)


def usual_launcher(world_size: int) -> Launcher:
    """Return what starts so many ranks where nothing else is said: DeepSpeed's launcher, as the README has it.

    `ftkit plan --gpus 2` plans what it would run, and `ftkit profile` starts its ranks by it.
    """
    return "deepspeed" if world_size > 1 else "none"


def join(process: ProcessContext, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    """Start the process group of the job, once; a process alone forms a group of one.

    Args:
        process: the place of this process.
        timeout_seconds: after which a rank that does not answer counts as lost.

    Raises:
        DeviceError: the ranks cannot meet, perhaps since another job has the port.
    """
    import torch
    from torch import distributed

    if distributed.is_initialized():
        return
    device = process.device
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index)
    backend = "nccl" if device.type == "cuda" else distributed.get_default_backend_for_device(device)
    if process.world_size > 1:
        timeout = timedelta(seconds=timeout_seconds)
        store = _meeting_store(timeout)
        distributed.init_process_group(
            backend, store=store, rank=process.rank, world_size=process.world_size, timeout=timeout
        )
    else:
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it even where nothing was launched
        store = distributed.HashStore()  # type: ignore[attr-defined]  # documented, but not in its __all__
        distributed.init_process_group(backend, store=store, rank=0, world_size=1)


def _meeting_store(timeout: timedelta) -> "Store":
    """Return the store through which the ranks find one another, with names of its own for each start of the job.

    torchrun keeps one store while it starts the ranks again, and there they would find the addresses of the ranks that
    were lost (torch 2.13, distributed/rendezvous.py: "We create a new TCPStore for every retry", which is not so where
    the rendezvous shares its store).
    """
    from torch.distributed import DistNetworkError
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous as meet

    try:
        store, _, _ = next(meet("env://", timeout=timeout))
    except DistNetworkError as error:
        address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        raise DeviceError(
            f"the ranks cannot meet at {address}, port {port}: {str(error).splitlines()[0]}; if another job has the "
            "port, choose another (deepspeed --master_port, torchrun --master-port)"
        ) from error
    return PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def leave() -> None:
    """End the process group, if there is one.

    The ranks go together: one that goes while another still talks to it breaks that one's connection. A rank on which
    an exception is on its way does not wait, since the others will never come.
    """
    from torch import distributed

    if distributed.is_initialized():
        if sys.exc_info()[0] is None and distributed.get_world_size() > 1:
            distributed.barrier()
        distributed.destroy_process_group()
    if "RANK" not in os.environ:  # so it is `join` that set the other
        os.environ.pop("LOCAL_RANK", None)


def says_peer_lost(text: str) -> bool:
    """Return whether a message says that another rank is gone: gloo's, NCCL's, or that of a `PeerLostError`."""
    return any(words in text for words in (_PEER_ENDED, *foreign.PEER_IS_LOST))


@contextmanager
def joined(process: ProcessContext, timeout_seconds: float = TIMEOUT_SECONDS) -> Iterator[None]:
    """Be in the process group of the job.

    Args:
        process: the place of this process.
        timeout_seconds: after which a rank that does not answer counts as lost.

    Raises:
        PeerLostError: another rank ended while this one worked with it.
    """
    join(process, timeout_seconds)
    try:
        yield
    except RuntimeError as error:
        if says_peer_lost(str(error)):
            raise PeerLostError(f"{_PEER_ENDED}; its own message says why") from error
        raise
    finally:
        leave()


def first_decides(process: ProcessContext, choose: Callable[[], Choice]) -> Choice:
    """Return on every rank what the first one chooses.

    Args:
        process: the place of this process; every process of the job calls this.
        choose: called on the first rank only.

    Returns:
        The choice.

    Raises:
        FtkitError: what `choose` raised, on every rank.
    """
    if process.world_size == 1:
        return choose()
    from torch import distributed

    outcome: list[Any] = [None, None]
    if process.is_main:
        try:
            outcome[0] = choose()
        except FtkitError as error:  # the others wait for a word
            outcome[1] = error
    distributed.broadcast_object_list(outcome, src=0)
    choice, mistake = outcome
    if mistake is not None:
        raise mistake
    return cast("Choice", choice)


def is_one_of_several() -> bool:
    """Return whether a launcher started this process beside others."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def end_now(code: int) -> NoReturn:
    """End a process of a launcher at once, without the interpreter's clean-up.

    DeepSpeed and the model's parameters hold the process group, so its threads are alive to the very end. One that
    lets go of a tensor while the interpreter shuts down asks for its lock and is ended for it, which aborts the
    process: "terminate called without an active exception", exit code -6, in place of the code that tells why.

    Args:
        code: what the process exits with.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def end_if_launched() -> None:
    """End a launcher's process whose work is done, before the interpreter's clean-up can abort it; see `end_now`."""
    if "RANK" in os.environ:
        end_now(0)


def has_bf16(device: "torch.device") -> bool:
    """Return whether a device multiplies bf16 in hardware: Ampere and later, AVX512-BF16 or AMX on a CPU.

    Args:
        device: an accelerator or the CPU.
    """
    import torch

    if device.type == "cpu":
        return torch.backends.cpu.get_cpu_capability().startswith("AVX512") and _cpu_has_bf16()
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def _cpu_has_bf16() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and any(flag in cpuinfo.read_text() for flag in ("avx512_bf16", "amx_bf16"))
