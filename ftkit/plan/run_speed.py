"""The speed of a run: of its worst step, for which memory is planned, and of all its steps on the data as it is."""

from dataclasses import replace

from ftkit.data.batching import Shape
from ftkit.observe.tape import Tape
from ftkit.plan.inputs.case import Case
from ftkit.plan.inputs.shapes import row_count, usual_step
from ftkit.plan.needs import compiling
from ftkit.plan.needs.streamed import coming_usually, seconds_beside
from ftkit.plan.predicted import Speed
from ftkit.plan.seconds.size import Size
from ftkit.plan.seconds.step_time import step_time
from ftkit.plan.zero.share import RankShare
from ftkit.records.streamed import StreamPlan


def speed_of(case: Case, shape: Shape, tape: Tape, share: RankShare, streamed: StreamPlan | None) -> Speed:
    """Return how fast a run is.

    Args:
        case: the run.
        shape: its worst micro-batches, as they were traced.
        tape: of a step of the plain engine.
        share: what one rank computes, holds and sends, and what is offloaded.
        streamed: the layers that come in a step; None: none do.
    """
    run, device = case.run, case.target.device(case.run)
    tape = replace(tape, costs=share.tape.costs, births=share.tape.births)
    beside = share.offload_seconds(device.host_rate)
    beside += compiling.in_a_step(case, tape, device)
    traced = shape.traced.num_micro_batches
    time = step_time(tape, device, shape.num_micro_batches, traced)
    wire = case.target.wire
    sending = share.sending_seconds(wire, shape.num_micro_batches / traced)
    fetching = share.coming_bytes / device.host_rate  # beside the computation, as DeepSpeed prefetches
    seconds = max(seconds_beside(time, streamed, device.host_rate), shape.num_micro_batches * fetching)
    seconds += beside + sending
    num_usual, size = _usual(case, shape, tape)
    usual_time = step_time(tape, device, num_usual, traced, size)
    coming = coming_usually(streamed, shape, num_usual)
    usual = max(seconds_beside(usual_time, coming, device.host_rate), num_usual * fetching)
    usual += beside + share.sending_seconds(wire, num_usual / traced)
    # Of what is streamed in a step, half comes for the forwards and half for the backwards.
    forward = max(time.forward_seconds, streamed.step_seconds / 2 / shape.num_micro_batches if streamed else 0.0)
    forward += compiling.in_a_forward(case, tape, device)
    flops, sequences = device.flops(run.precision), run.config.batch.global_batch_size
    return Speed(
        step_seconds=seconds,
        samples_per_second=sequences / seconds,
        tokens_per_second=sequences * case.shape.length / seconds,
        device_flops=flops,
        model_flops_utilization=time.flops / seconds / flops,
        total_seconds=None if case.num_steps is None else case.num_steps * usual,
        speed_source=device.source,
        evaluation_tokens_per_second=run.devices.world_size * shape.batch * case.shape.length / forward,
        streamed=streamed,
    )


def _usual(case: Case, shape: Shape, tape: Tape) -> tuple[float, Size]:
    """Return the micro-batches of a usual step, and the size of one as a share of those that were traced."""
    rows = row_count(unpadded=tape.unpadded)
    usual = usual_step(case.run.config, case.target.num_devices, case.sequences, rows)
    if shape.length != case.shape.length:  # one vector stands for a sequence, however long it is
        share = usual.sequences / shape.batch
        return usual.num_micro_batches, Size(share, share, 1.0)
    places = shape.batch * shape.length
    size = Size(usual.tokens / places, usual.places / places, usual.scores / (places * shape.length))
    return usual.num_micro_batches, size
