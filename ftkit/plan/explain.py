"""Say what a plan rests on: the kernels, the types, what lives at the peak and why, and the changes that lower it."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from ftkit.config.files import flat
from ftkit.machine.hardware import Gpu
from ftkit.machine.heap import is_whole
from ftkit.machine.versions import versions
from ftkit.models.build import build_empty_model, weight_lines
from ftkit.observe.allocator import round_size
from ftkit.observe.live_groups import live_groups, own_path, part_types, widest_results
from ftkit.observe.operators import dtype_name
from ftkit.observe.peaks import peak_place
from ftkit.observe.tape import Tape
from ftkit.plan.choices.candidates import Candidate
from ftkit.plan.choices.changes import SIZE, STREAM, TOKENS, as_flags, steps_down
from ftkit.plan.choices.search import options_at
from ftkit.plan.inputs.case import Case
from ftkit.plan.inputs.target import Target
from ftkit.plan.needs.heap import HEAP_BYTES, HEAP_SHARE
from ftkit.plan.needs.memory import RESERVED_NOISE
from ftkit.plan.needs.mixture import find_mixture, routing_words, uneven_bytes
from ftkit.plan.predict import Grounds, Tapes
from ftkit.plan.predicted import FormulaPrediction
from ftkit.plan.tracing.attention_choice import AttentionCall, choose, order, refusals
from ftkit.records.explained import Attention, Explanation, Knob, Logits
from ftkit.step.observer import Phase
from ftkit.units import counted, format_bytes, format_seconds

_LIBRARIES = ("python", "ftkit", "torch", "transformers", "peft", "bitsandbytes", "deepspeed")


def explain(grounds: Grounds, changes: Sequence[Candidate] = ()) -> Explanation:
    """Explain a prediction.

    Args:
        grounds: the prediction, with what it was made of.
        changes: what the run needs after single changes, as `priced_changes` returns it.

    Returns:
        What it rests on. Of a step for which a formula stands in neither kernels nor types nor tensors are known.
    """
    prediction, case = grounds.prediction, grounds.case
    tape = grounds.tape or Tape()
    rounding = round_size if case.target.device_type == "cuda" else int
    low, high = case.target.context_range
    known = versions()
    return Explanation(
        batch=_batch(case),
        attention=tuple(_attention(tape, case)),
        parts=part_types(tape),
        logits=_logits(tape, case),
        peak=_moment(grounds),
        peak_active_bytes=prediction.peak_active_bytes,
        live=live_groups(tape, peak_place(tape, rounding), rounding),
        context=_context_words(case.target),
        context_low_bytes=low,
        context_high_bytes=high,
        allocator=_allocator_words(case),
        messages=_message_words(grounds),
        experts=expert_words(grounds),
        frozen=frozen_words(grounds),
        reserved_bytes=prediction.peak_reserved_bytes,
        cut=_cut(case),
        knobs=tuple(_knobs(grounds.prediction.needed_bytes, changes)),
        versions={name: known[name] for name in _LIBRARIES if name in known},
    )


def priced_changes(grounds: Grounds, tapes: Tapes) -> list[Candidate]:
    """Return what a run needs after each single change that may save memory.

    Args:
        grounds: the prediction of the run as it is.
        tapes: what was traced for it, and takes what is traced here.
    """
    case = grounds.case
    config = case.run.config
    options = options_at(config, case.target, case.architecture, case.sequences, tapes)
    priced, _ = options.price_each(config, steps_down(config, case.target, case.sequences))
    return priced


def expert_words(grounds: Grounds) -> str:
    """Return how the peak of a mixture of experts depends on its routing; nothing of another model.

    Args:
        grounds: the prediction, with what it was made of.
    """
    mixture = find_mixture(grounds.case.architecture)
    if mixture is None:
        return ""
    is_formula = isinstance(grounds.prediction, FormulaPrediction)
    return routing_words(mixture, uneven_bytes(grounds.case) if is_formula else None)


def frozen_words(grounds: Grounds) -> tuple[str, ...]:
    """Return what stays whole beside weights in 4 bits, and whether experts have adapters, as training says it.

    Args:
        grounds: the prediction, with what it was made of.
    """
    case = grounds.case
    if not case.run.config.method.is_adapter:
        return ()
    return tuple(weight_lines(build_empty_model(case.run.config, case.architecture, case.run.dtype)))


def _context_words(target: Target) -> str:
    """Return which end of the range of a context is counted, and where the range is from; nothing on a CPU."""
    if target.gpu is None:
        return ""
    known = target.gpu.context
    low, high = format_bytes(known.low_bytes), format_bytes(known.high_bytes)
    return f"{high}{'' if low == high else f', the high end; the low one is {low}'} ({known.source})"


def _allocator_words(case: Case) -> str:
    """Return how memory is reserved."""
    if case.target.gpu is None:
        share = f"{HEAP_SHARE:.0%} of what comes and goes in a step, and " if is_whole() else ""
        return f"what the C library keeps of freed blocks: {share}{format_bytes(HEAP_BYTES)} at most"
    if case.run.config.engine.expandable_segments:
        return f"growing segments (engine.expandable_segments), each request replayed; {RESERVED_NOISE:.1%} is noise"
    return f"segments of fixed size, each request replayed; up to {RESERVED_NOISE:.1%} more is noise"


def _message_words(grounds: Grounds) -> str:
    """Return what the ranks send each other in a step, and how long it takes by which figures."""
    share, case = grounds.share, grounds.case
    if share is None or case.target.num_devices == 1:
        return ""
    repeats = case.shape.num_micro_batches / case.shape.traced.num_micro_batches
    wire = case.target.wire
    number, num_bytes = share.sent(repeats)
    seconds = format_seconds(share.sending_seconds(wire, repeats))
    return f"{round(number)} in a step, of {format_bytes(round(num_bytes))} in all: {seconds}, {wire.source}"


def _batch(case: Case) -> str:
    shape = case.shape
    padding = "padded, so that there is a mask" if shape.is_padded else "none of it padding"
    times = counted(shape.num_micro_batches, "micro-batch", "micro-batches")
    return f"{times} of {shape.batch} x {shape.length} tokens, {padding}"


def _cut(case: Case) -> str:
    batch = case.run.config.batch
    return as_flags({TOKENS: batch.token_limit} if batch.micro_batch_size is None else {SIZE: batch.micro_batch_size})


def _attention(tape: Tape, case: Case) -> Iterator[Attention]:
    """Yield the attention of the layers that do alike."""
    kinds: dict[str, tuple[Attention, ...]] = {}
    layers: dict[str, list[int]] = defaultdict(list)
    for layer in sorted({layer for _, _, layer in tape.costs if layer is not None}):
        calls = [facts for facts in tape.choices.get(layer, ()) if isinstance(facts, AttentionCall)]
        found = _of_calls(calls, case) or (_by_operators(tape, layer),)
        kinds[repr(found)] = found
        layers[repr(found)].append(layer)
    for kind, found in kinds.items():
        for one in found:
            yield one.model_copy(update={"layers": tuple(layers[kind])})


def _of_calls(calls: list[AttentionCall], case: Case) -> tuple[Attention, ...]:
    """Return the attention of a layer's calls, those alike once: one that is computed again has no other."""
    gpu = case.target.gpu
    if gpu is None:
        return ()
    told: dict[str, AttentionCall] = {}
    for call in sorted(calls, key=lambda call: call.needs_grad):
        told[_facts(call, case)] = call
    return tuple(
        Attention(layers=(), kernel=choose(call, gpu), call=facts, passed_over=_passed_over(call, gpu))
        for facts, call in told.items()
    )


def _facts(call: AttentionCall, case: Case) -> str:
    query, key, _ = call.heads
    repeats = query == key and _num_key_heads(case) < query
    heads = f"{query} heads" + (f" over {key} of the key" if key < query else "")
    width = f"{call.widths[0]} wide" if len(set(call.widths)) == 1 else f"{call.widths} wide"
    return ", ".join(
        [
            dtype_name(call.dtypes[0]),
            f"{heads} {width}" + (" (key and value repeated for each)" if repeats else ""),
            f"{call.lengths[0]} x {call.lengths[1]} tokens",
            "a mask" if call.has_mask else "causal without a mask" if call.is_causal else "without a mask",
            *([f"dropout {call.dropout:g}"] if call.dropout else []),
        ]
    )


def _num_key_heads(case: Case) -> int:
    sizes = case.architecture
    return int(getattr(sizes, "num_key_value_heads", None) or sizes.num_attention_heads)


def _passed_over(call: AttentionCall, gpu: Gpu) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for kernel in order(gpu):
        if not (reasons := refusals(kernel, call, gpu)):
            break
        found[kernel] = tuple(reasons)
    return found


def _by_operators(tape: Tape, layer: int) -> Attention:
    """Return the attention of a layer that did not ask torch to choose, by the operators of its forwards."""
    names = {
        name.partition(".")[0]
        for (phase, _, at), costs in tape.costs.items()
        if at == layer and phase in (Phase.FORWARD, Phase.TRUNK)
        for name, *_ in costs
    }
    asked = sorted(name for name in names if "scaled_dot_product" in name)
    if asked:
        return Attention(layers=(), kernel=asked[0], call="as torch chooses on a CPU")
    made_of = [name for name in ("bmm", "baddbmm", "_softmax", "_safe_softmax") if name in names]
    if "_softmax" in made_of or "_safe_softmax" in made_of:
        return Attention(layers=(), kernel="plain", call=f"products and a softmax: {', '.join(made_of)}")
    return Attention(layers=(), kernel="none", call="neither a kernel that torch chooses nor a softmax of scores")


def _logits(tape: Tape, case: Case) -> Logits | None:
    sizes = case.architecture
    width = sizes.vocab_size if case.run.config.task == "causal-lm" else sizes.num_labels
    widest = widest_results(tape, width)
    if widest is None:
        return None
    rows = 1
    for length in widest.shape[:-1]:
        rows *= length
    all_rows = case.shape.batch * (case.shape.length - 1 if case.run.config.task == "causal-lm" else 1)
    return Logits(shape=widest.shape, dtype=widest.dtype, is_whole=rows >= all_rows)


def _moment(grounds: Grounds) -> str:
    prediction = grounds.prediction
    at = own_path(prediction.peak_module or "") or (
        "" if prediction.peak_layer is None else f"layer {prediction.peak_layer}"
    )
    what = {
        "load": "while the run is set up",
        "forward": "in a forward",
        "backward": "in a backward",
        "optimizer": "in the update",
        "trunk": "in the pass of the frozen layers, before the first step",
    }[prediction.peak_phase]
    return f"{what}, at {at}" if at else what


def _knobs(before: int, changes: Sequence[Candidate]) -> Iterator[Knob]:
    """Yield the changes that lower a peak, the largest saving first.

    Of the places that layers may be streamed from the quicker one alone: the device has the same of both.
    """
    seen = set()
    for one in sorted(changes, key=lambda one: (one.needed_bytes, one.seconds)):
        alike = repr({key: key == STREAM or value for key, value in one.changes.items()}), one.fits
        if one.needed_bytes < before and alike not in seen:
            seen.add(alike)
            yield _knob(one, before)


def _knob(one: Candidate, before: int) -> Knob:
    return Knob(
        flags=as_flags(one.changes),
        changes=flat(one.changes),
        saved_bytes=before - one.needed_bytes,
        peak_process_bytes=one.needed_bytes,
        verdict=one.prediction.verdict,
        step_seconds=one.seconds or None,
    )
