"""What ranks on a CPU send each other takes as long as processes of this machine were timed to send it."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from ftkit.cli import doctor as command
from ftkit.engine.resolve import resolve
from ftkit.plan import looked as looked_room
from ftkit.plan.explain import explain
from ftkit.plan.inputs.target import Target
from ftkit.plan.looked import looked
from ftkit.plan.predict import Tapes, predict_with_grounds
from ftkit.plan.seconds import messages
from ftkit.plan.seconds.messages import Collective, Message, Wire, assumed_wire, find_wire, time_wire
from ftkit.plan.seconds.speed import FROM_STEPS, Device
from ftkit.plan.seconds.timed import Timed
from tests.plan.zero.cases import Case

DEVICE = Device(1e11, 1e11, 1e10, 1e-5, is_asynchronous=False, source=FROM_STEPS)
TIMED = Wire(2, 1e10, {one: [Timed(0, 16, 1e-3), Timed(0, 2**25, 0.05)] for one in Collective}, "timed for a test")


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path))


def at(ranks, wire=None):
    return Target("cpu", "cpu", None, 2**34, ranks, launcher="deepspeed", looked=DEVICE, timed_wire=wire)


def test_a_message_takes_what_one_of_its_size_took_and_one_rank_sends_none():
    small, large, larger = (Message(Collective.SUM, size) for size in (16, 2**25, 2**32))
    assert TIMED.seconds(small) == pytest.approx(1e-3)
    assert TIMED.seconds(large) == pytest.approx(0.05)
    assert TIMED.seconds(larger) == pytest.approx(2**7 * 0.05, rel=0.1)  # far beyond what was timed the bytes decide
    assert replace(TIMED, ranks=1).seconds(large) == 0


def test_what_nobody_has_timed_goes_by_the_bytes_of_a_ring():
    wire = assumed_wire(4)
    assert wire.seconds(Message(Collective.GATHER, 4 * 10**9)) == pytest.approx(0.3)
    assert wire.seconds(Message(Collective.SUM, 4 * 10**9)) == pytest.approx(0.6)
    assert "nobody has measured" in wire.source


@pytest.mark.parametrize(("stage", "num_gradients"), [(1, 1), (2, 4)])
def test_a_plan_takes_the_time_of_its_messages_and_explains_it(stage, num_gradients):
    case = Case("llama", stage, "none", "full", 0.0)
    config = case.config.model_copy(
        update={"batch": case.config.batch.model_copy(update={"global_batch_size": 8, "micro_batch_size": 1})}
    )
    tapes = Tapes()
    slow, quick, alone = (
        predict_with_grounds(config, target, case.architecture, tapes=tapes) for target in (at(2, TIMED), at(2), at(1))
    )
    assert slow.share is not None
    assert quick.share is not None
    sent = list(slow.share._in_a_step(2))  # of four micro-batches two are traced
    whole = Message(Collective.SUM, max(message.num_bytes for message, _ in sent))
    assert sum(number for message, number in sent if message == whole) == num_gradients  # stage 2 sums each backward's
    more = slow.prediction.step_seconds - quick.prediction.step_seconds
    assert more == pytest.approx(slow.share.sending_seconds(TIMED, 2) - quick.share.sending_seconds(at(2).wire, 2))
    assert explain(slow).messages.endswith("timed for a test")
    assert explain(quick).messages.endswith("which nobody has measured")
    assert explain(alone).messages == ""


def test_processes_of_this_machine_are_timed_once_and_the_doctor_tells_of_it(monkeypatch):
    said = {}

    def talk(ranks):
        said.update(messages_talk(ranks))
        return said

    messages_talk = messages._talk
    monkeypatch.setattr(messages, "_talk", talk)
    monkeypatch.setattr(messages, "_MOST_WAITED", 2.0)  # other tests run beside this one
    run = resolve(Case("llama", 2, "none", "lora", 0.0).config, at(2).devices)
    wire = looked(at(2), run).timed_wire
    assert wire is not None
    assert set(wire.timed) == set(Collective)
    assert all(0 < wire.seconds(Message(one, 16)) < wire.seconds(Message(one, 2**25)) < 60 for one in Collective)
    assert find_wire(2) == wire == at(2).wire
    assert find_wire(3) is None
    monkeypatch.setattr(looked_room, "time_wire", None)  # nobody is timed again, nor is a rank alone
    assert looked(at(2), run).timed_wire is looked(at(1), run).timed_wire is None
    monkeypatch.setattr(command, "_usual_ranks", lambda: 2)
    printed = CliRunner().invoke(command.doctor, []).output
    assert "ms for a sum of one number" in printed

    file = messages._file(2)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"machine": {}}))
    assert find_wire(2) is None
    monkeypatch.setattr(messages, "_talk", lambda _: said | {"waited": 3.0})  # other programs had the cores
    assert time_wire(2, "2026-11-27").timed == wire.timed
    assert find_wire(2) is None
    told: list[str] = []
    command._time_messages(2, told.append)
    assert told == [
        "messages between 2 ranks",
        "left out, since other programs had the cores: messages between 2 ranks",
    ]


def test_where_processes_cannot_talk_the_plan_goes_on_with_what_it_takes_for_granted(monkeypatch):
    monkeypatch.setattr(messages, "_PROGRAM", "ftkit.no_such_program")
    assert time_wire(2, "2026-11-27") is None
    run = resolve(Case("llama", 2, "none", "lora", 0.0).config, at(2).devices)
    assert looked(at(2), run).wire == assumed_wire(2)
    told: list[str] = []
    command._time_messages(2, told.append)
    assert told[1:] == ["left out, since so many processes cannot talk to each other: messages between 2 ranks"]
