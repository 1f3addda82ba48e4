"""One of two ranks: real DeepSpeed steps under the recorder; rank 0 prints what lived after loading and at the peak."""

import gc
import json
import sys

import torch

from ftkit.distributed import ProcessContext, join, leave
from ftkit.engine import build_engine
from ftkit.model import set_training
from ftkit.plan.tape import LOAD, Recorder
from ftkit.plan.timeline import find_peak
from ftkit.plan.trace import batch_tensors, layer_names, make_batches, record_steps, see_model
from tests.plan import models
from tests.plan.zero_cases import CASES, case_config

torch.set_num_threads(1)
process = ProcessContext.from_environment()
join(process)
for case in CASES:
    config = case_config(*case)
    architecture = models.architecture("llama", width=128)
    model = models.real_model(config, architecture, torch.bfloat16)
    layers, recorder = layer_names(model), Recorder()
    gc.collect()
    gc.disable()
    with recorder.inside(model, layers):
        see_model(recorder, model, layers)
        engine = build_engine(config, model, process, torch.bfloat16)
        set_training(model, True)
        recorder.mark(LOAD)
        micro_batches = make_batches(config.task, models.shape("llama"))
        recorder.see(batch_tensors(micro_batches), "input")
        tape = record_steps(engine, micro_batches, recorder)
    gc.enable()
    if process.is_main:
        found = {"load": tape.at_marks()[0][1], "peak": find_peak(tape, int).active_bytes}
        sys.stdout.write(json.dumps({"case": case, **found}) + "\n")
        sys.stdout.flush()
    del engine, model, recorder, tape
    gc.collect()
leave()
