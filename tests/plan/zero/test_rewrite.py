"""What a stage is told, on the step of the docstring's example."""

from ftkit.observe.tape import Birth, Role, Tape
from ftkit.plan.zero.heap import FP32, Heap
from ftkit.plan.zero.rewrite import Fate, Stage, rewrite
from ftkit.records.figures import Kind
from ftkit.step.observer import Phase


class Told(Stage):
    """Writes down what it is told; gradients go, as they do at stage 2."""

    def __init__(self):
        self.moments = []

    def fate(self, birth, kind):
        return Fate.GOES if kind is Kind.GRADIENT else Fate.STAYS

    def after_load(self):
        self.moments.append("after_load")

    def on_first_gradient(self):
        self.moments.append("on_first_gradient")

    def on_gradient(self, elements):
        self.moments.append(f"on_gradient({elements})")

    def end_backward(self, *, is_last):
        self.moments.append(f"end_backward({is_last=})")

    def before_update(self):
        self.moments.append("before_update")

    def end_update(self):
        self.moments.append("end_update")


def test_a_stage_is_told_the_moments_of_the_example_and_its_gradients_leave_the_tape():
    plain = Tape()

    def born(elements, phase, role=None):
        number = plain.add(Birth(FP32 * elements, phase, 1, 0, "", None, role=role))
        plain.begin(number, None)
        return number

    def end(phase):
        plain.marks.append((len(plain.events), phase))

    born(4, Phase.LOAD, Role.TRAINABLE), born(6, Phase.LOAD, Role.TRAINABLE)
    end(Phase.LOAD)
    activation = born(8, Phase.FORWARD)
    end(Phase.FORWARD)
    gradients = born(6, Phase.BACKWARD), born(4, Phase.BACKWARD)
    plain.end(activation, None)
    end(Phase.BACKWARD)
    end(Phase.OPTIMIZER)
    for number in gradients:
        plain.end(number, None)
    stage = Told()

    tape = rewrite(plain, Heap(plain), stage)

    assert stage.moments == [
        "after_load", "on_first_gradient", "on_gradient(6)", "on_gradient(4)",
        "end_backward(is_last=True)", "before_update", "end_update",
    ]  # fmt: skip
    assert [birth.size // FP32 for birth in tape.births] == [4, 6, 8]
    assert [phase for _, phase in tape.marks] == [Phase.LOAD, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER]
