"""A tiny model under torch's FSDP, real ranks or one without the others; prints the live bytes after every phase.

python -m tests.benchmarks.fsdp_worker VERSION real RANK RANKS FILE | VERSION fake RANKS
"""

import contextlib
import json
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from benchmarks.stacks import fsdp, fsdp2, traced
from ftkit.observe.recorder import Recorder
from ftkit.observe.tape import Role
from ftkit.step.observer import Phase
from tests.plan import gloo


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 64, bias=False), nn.Linear(64, 32, bias=False)

    def forward(self, x: torch.Tensor) -> Any:
        return x + self.down(torch.relu(self.up(x)))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(48, 32), nn.Linear(32, 48, bias=False)
        self.layers = nn.ModuleList(Block() for _ in range(3))

    def forward(self, ids: torch.Tensor) -> Any:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def wrapped(model: nn.Module, mesh: Any) -> nn.Module:
    if mesh is None:
        policy = ModuleWrapPolicy({Block})
        return FullyShardedDataParallel(model, auto_wrap_policy=policy, device_id=fsdp.CPU, use_orig_params=True)
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in [one for one in model.modules() if isinstance(one, Block)] + [model]:
        fully_shard(block, mesh=mesh, mp_policy=mixed)
    return model


def live_bytes(num_ranks: int, *, is_fake: bool, version: int = 1) -> dict[str, Any]:
    with torch.device("meta" if is_fake else "cpu"):
        model: nn.Module = Model()
    with contextlib.ExitStack() as stack:
        if version == 1:
            device, mesh = stack.enter_context(fsdp.rank_of(num_ranks)), None
        else:
            device, mesh = stack.enter_context(fsdp2.rank_of(num_ranks))
        if is_fake:
            stack.enter_context(traced.computing())
            traced.fake(model)
        model = wrapped(model, mesh)
        recorder = stack.enter_context(Recorder())
        stack.enter_context(device.told_to(recorder))
        shards = ((name, getattr(one, "_local_tensor", one)) for name, one in model.named_parameters())
        recorder.see(shards, Role.PARAMETER)
        recorder.mark(Phase.LOAD)
        optimizer = torch.optim.AdamW(model.parameters(), foreach=True)

        def loss_of() -> torch.Tensor:
            loss: torch.Tensor = model(torch.zeros(2, 8, dtype=torch.int64)).sum()
            return loss

        def update() -> None:
            optimizer.step()
            optimizer.zero_grad()

        traced.two_steps(recorder, loss_of, update)
    return {"marks": recorder.tape.at_marks(), "peak": recorder.tape.peak_bytes()}


if __name__ == "__main__":
    version, kind, *numbers = sys.argv[1:]
    if kind == "real":
        gloo.let_go(hides=True)
        rank, ranks, place = int(numbers[0]), int(numbers[1]), numbers[2]
        dist.init_process_group("gloo", rank=rank, world_size=ranks, init_method=f"file://{place}")
        found = live_bytes(ranks, is_fake=False, version=int(version))
        if rank == 0:
            sys.stdout.write(json.dumps(found))
        dist.destroy_process_group()
    else:
        sys.stdout.write(json.dumps(live_bytes(int(numbers[0]), is_fake=True, version=int(version))))
