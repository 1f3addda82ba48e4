"""One of two ranks: real steps under the recorder; rank 0 prints what lived after loading and at the peak, at most."""

import gc
import json
import sys
from collections import Counter

import torch
import torch.distributed as dist

from ftkit.engine.assemble import build_engine
from ftkit.engine.resolve import Devices, resolve
from ftkit.machine.memory import quiet_collector
from ftkit.machine.process import ProcessContext, join, leave
from ftkit.models.build import set_training
from ftkit.models.objective import objective_of
from ftkit.observe.peaks import find_peak
from ftkit.observe.recorded import batch_tensors, layer_names, make_batches, record_steps, see_model
from ftkit.observe.recorder import Recorder
from ftkit.observe.tape import Role, Tape
from ftkit.step.observer import Phase
from ftkit.step.step import train_step
from tests.plan import gloo
from tests.plan.zero.cases import SETS, Case, moved_bytes
from tests.quick_ranks import collect_little, know_the_processor


def measure(case: Case, process: ProcessContext, sent: Counter[str]) -> Tape:
    """Return the tape of two steps; what a third one sends is left in `sent`."""
    model = case.build()
    # DeepSpeed keeps shapes as meta tensors, which are no memory.
    layers, recorder = layer_names(model), Recorder(device_type="cpu")
    with quiet_collector(), recorder.inside(model, layers):
        see_model(recorder, model, layers)
        objective = objective_of(case.config, case.architecture, model)
        engine = build_engine(resolve(case.config, Devices.of(process)), model, process, objective)
        set_training(model, True)
        gc.collect()
        recorder.mark(Phase.LOAD)
        micro_batches = make_batches(engine.objective, case.shape)
        recorder.see(batch_tensors(micro_batches), Role.INPUT)
        tape = record_steps(engine, micro_batches, recorder)
    sent.clear()
    train_step(engine, micro_batches, sum(one.labels.numel() for one in micro_batches), 1e-4)
    return tape


torch.set_num_threads(1)
sent: Counter[str] = Counter()
gloo.let_go(hears=lambda name, num_bytes: sent.update({name: num_bytes}))
rank = ProcessContext.from_environment()
join(rank)
know_the_processor()
keep_imports = collect_little()
for one in SETS[sys.argv[1]]:
    tape = measure(one, rank, sent)
    told = dict(sent)
    keep_imports()
    gc.collect()
    found = torch.tensor([tape.at_marks()[0][1], find_peak(tape, int).active_bytes])
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    if rank.is_main:
        load, peak = found.tolist()
        line = {"case": one, "load": load, "peak": peak, "moved": moved_bytes(tape), "sent": told}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
leave()
