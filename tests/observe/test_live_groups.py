"""Groups of what lives at a moment, on a tape that is written by hand."""

from ftkit.observe.live_groups import live_groups, part_types, widest_results
from ftkit.observe.tape import Birth, Role, Tape
from ftkit.step.observer import Phase


def made_tape():
    """Two layers with a weight and an activation each, a master, logits, and what the update leaves."""
    tape = Tape()

    def live(size, phase, module, layer, **others):
        tape.begin(tape.add(Birth(size, phase, 1, 0, module, layer, **others)), layer)

    for layer in (0, 1):
        weight = {"role": Role.TRAINABLE, "shape": (8, 4), "dtype": "float16"}
        live(64, Phase.LOAD, f"base_model.model.h.{layer}.fc.weight", layer, **weight)
    live(128, Phase.LOAD, "", None, dtype="float32")
    live(16, Phase.LOAD, "", None, dtype="int64")
    tape.marks.append((len(tape.events), Phase.LOAD))
    for layer in (0, 1):
        live(
            600, Phase.FORWARD, f"base_model.model.h.{layer}.fc", layer, op="mm.default", shape=(2, 8), dtype="float16"
        )
    live(80, Phase.FORWARD, "lm_head", None, op="mm.default", shape=(2, 10), dtype="float32")
    tape.marks.append((len(tape.events), Phase.FORWARD))
    live(256, Phase.OPTIMIZER, "", None, dtype="float32")
    tape.marks.append((len(tape.events), Phase.OPTIMIZER))
    return tape


def test_what_lives_is_grouped_by_its_place_in_all_layers_and_adds_up():
    tape = made_tape()
    groups = live_groups(tape, len(tape.events) - 1, int)
    first = groups[0]
    assert (first.kind, first.module, first.op, first.shape) == ("activation", "h.*.fc", "mm", (2, 8))
    assert (first.num_bytes, first.num_tensors, first.num_layers) == (1200, 2, 2)
    assert sum(group.num_bytes for group in groups) == list(tape.live_bytes())[-1]
    # As the allocator takes it: 512 bytes for each small one, 1024 for each of the two of 600.
    assert sum(group.num_bytes for group in live_groups(tape, len(tape.events) - 1)) == 6 * 512 + 2 * 1024


def test_the_types_of_the_parts_are_told_apart_by_when_the_optimizer_made_them():
    types = {part.part: part.num_bytes for part in part_types(made_tape())}
    assert types == {
        "trained weights": {"float16": 128},
        "masters": {"float32": 128},
        "moments": {"float32": 256},
        "activations": {"float16": 1200, "float32": 80},
    }


def test_the_widest_result_outside_the_layers_is_the_logits():
    widest = widest_results(made_tape(), 10)
    assert widest is not None
    assert (widest.shape, widest.dtype) == ((2, 10), "float32")
    assert widest_results(made_tape(), 8) is None  # those are in layers
