"""`ftkit doctor`: what is on this machine, what of it works, and what to install or to set."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ftkit.cli.options import Place, quieten, user_errors
from ftkit.errors import DeviceError
from ftkit.machine.disk import cache_folder, explained_writing, make_folder
from ftkit.machine.doctor.examine import examine
from ftkit.machine.doctor.finding import Finding, State
from ftkit.machine.hardware import this_machine
from ftkit.machine.versions import device_name
from ftkit.sweep.matrix import ENGINES, Tried, try_all
from ftkit.units import counted, format_bytes, format_seconds

if TYPE_CHECKING:
    import torch

    from ftkit.plan.seconds.calibration import Calibration

_COLOURS = {State.OK: "green", State.MISSING: "yellow", State.PROBLEM: "red"}
_NAME = 26


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--output", type=Place(), default=Path("runs"), show_default=True, help="Where runs would go.")
@click.option(
    "--try",
    "tries",
    is_flag=True,
    help="Train one step of a tiny model by each method, plain and under ZeRO-2 and ZeRO-3: a minute or two.",
)
@click.option(
    "--calibrate",
    "calibrates",
    is_flag=True,
    help="Measure in 20 seconds what this machine's GPU, or its CPU, and its disk reach, and keep it for the plans of "
    "this machine.",
)
@click.option("--online", is_flag=True, help="Ask whether the hub answers; nothing else is asked over a network.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def doctor(output: Path, *, tries: bool, calibrates: bool, online: bool, as_json: bool) -> None:
    """Look at this machine and say what is there, what works, what does not, and what to install or to set.

    Exits with 0 where a training can run here, and with 7 where none can.
    """
    with user_errors():
        if calibrates:
            _calibrate()
        found = _shown(_findings(output, tries=tries, online=online), as_json=as_json)
        if as_json:
            click.echo(json.dumps([asdict(one) for one in found]))
    if any(one.is_blocking for one in found):
        click.get_current_context().exit(DeviceError.exit_code)


def _findings(output: Path, *, tries: bool, online: bool) -> Iterator[Finding]:
    is_blocked = False
    for one in examine(output, online=online):
        is_blocked |= one.is_blocking
        yield one
    if not is_blocked:
        yield _rates()
        yield from _messages()
    if tries and not is_blocked:
        quieten()
        yield from _tried()


def _calibrate() -> None:
    """Measure and keep what plans of this machine rest on."""
    quieten()
    from ftkit.plan.seconds.calibration import keep
    from ftkit.plan.seconds.cpu_rates import calibrate
    from ftkit.plan.seconds.gpu_rates import calibrate_gpu

    def tell(text: str) -> None:
        click.echo(f"timing {text}" if "left out" not in text else text, err=True)

    device = _accelerator()
    if device is not None and device.type != "cuda":
        raise DeviceError("--calibrate measures CPUs and CUDA devices alone so far")
    cure = "name another folder with FTKIT_CACHE"
    make_folder(cache_folder(), cure)
    with explained_writing(cache_folder(), f"or {cure}"):
        keep(calibrate(tell) if device is None else calibrate_gpu(device, tell))
    if device is None and (ranks := _usual_ranks()) > 1:
        _time_messages(ranks, tell)


def _time_messages(ranks: int, tell: Callable[[str], None]) -> None:
    from ftkit.plan.seconds.cpu_rates import today
    from ftkit.plan.seconds.messages import find_wire, time_wire

    what = f"messages between {ranks} ranks"
    tell(what)
    if time_wire(ranks, today()) is None:
        tell(f"left out, since so many processes cannot talk to each other: {what}")
    elif find_wire(ranks) is None:
        tell(f"left out, since other programs had the cores: {what}")


def _accelerator() -> "torch.device | None":
    """Return the first device beside the CPU."""
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    return None if found is None else torch.device(found.type, 0)


def _rates() -> Finding:
    """Return whether plans of this machine rest on what was measured."""
    import torch

    from ftkit.plan.seconds.calibration import find_calibration
    from ftkit.plan.seconds.looks import kept_looks

    name, cure = (
        "speed in plans",
        "`ftkit doctor --calibrate` takes 20 s and makes them much closer to what a step takes",
    )
    device = _accelerator()
    if device is not None and device.type != "cuda":
        return Finding(name, State.OK, "from the table of cards; --calibrate measures CPUs and CUDA devices alone")
    found = find_calibration(torch.get_num_threads() if device is None else device_name(device))
    if found.calibration is not None:
        return Finding(name, State.OK, _measured(found.calibration))
    if found.stale is not None:
        return Finding(name, State.PROBLEM, f"what was measured does not hold: {found.stale}", cure)
    instead = "take a look at its processor" if device is None else "take the table of cards"
    looks = kept_looks(torch.get_num_threads()) if device is None else []
    seen = f", or the look that a run took ({'; '.join(f'{one.kind}, {one.date}' for one in looks)})" if looks else ""
    return Finding(name, State.MISSING, f"this machine is not measured, plans {instead}{seen}", cure)


def _usual_ranks() -> int:
    """Return how many ranks of torch's threads this machine's processor has cores for."""
    import torch

    return this_machine().num_cpus // torch.get_num_threads()


def _messages() -> Iterator[Finding]:
    """Yield what plans of as many ranks as fit on this machine's processor take of their messages."""
    from ftkit.plan.seconds.messages import Collective, Message, find_wire

    if _accelerator() is not None or (ranks := _usual_ranks()) < 2:
        return
    name = f"messages of {ranks} ranks"
    wire = find_wire(ranks)
    if wire is None:
        cure = "`ftkit doctor --calibrate` times them; a run that looks at its processor does so too"
        yield Finding(name, State.MISSING, "plans take them to come at 10 GB/s without delay", cure)
        return
    little, much = (wire.seconds(Message(Collective.SUM, size)) for size in (4, 2**25))
    fact = f"{1e3 * little:.2g} ms for a sum of one number, {1e3 * much:.2g} ms for one of 32 MiB"
    yield Finding(name, State.OK, f"{fact}, {wire.source}")


def _measured(found: "Calibration") -> str:
    """Return the figures of a calibration in words."""
    disk = f"its disk read at {format_bytes(found.disk_read)}/s and written at {format_bytes(found.disk_write)}/s"
    device = found.device
    if found.link is None:
        return f"{device.source}, {counted(int(found.machine['threads']), 'thread')}, {disk}"
    return (
        f"{device.source}: {device.fp32_flops / 1e12:.1f} TFLOP/s in fp32 and {device.half_flops / 1e12:.1f} in half "
        f"precision, {format_bytes(device.bandwidth)}/s of its memory, {format_bytes(found.link)}/s from the host, "
        f"{1e6 * device.host_seconds:.1f} us for an operator; {disk}"
    )


def _tried() -> Iterator[Finding]:
    """Yield how each training of the matrix ended, and a word where none of them worked."""
    has_worked = False
    for one in try_all():
        has_worked |= one.reason is None
        yield _cell(one)
    if not has_worked:
        yield Finding("trainings", State.PROBLEM, "none of them worked", "mend what is named above", is_blocking=True)


def _cell(tried: Tried) -> Finding:
    name = f"{tried.method}, {tried.engine}"
    if tried.reason is not None:
        flags = " ".join(f"--set {key}={value}" for key, value in ENGINES[tried.engine].items())
        cure = f"`ftkit train --method {tried.method} {flags}` shows all of it"
        return Finding(name, State.PROBLEM, tried.reason, cure)
    peak = "" if tried.peak_bytes is None else f", {format_bytes(tried.peak_bytes)} at its peak"
    return Finding(name, State.OK, f"trained a step in {format_seconds(tried.seconds)}{peak}")


def _shown(findings: Iterable[Finding], *, as_json: bool) -> list[Finding]:
    """Print each finding the moment it is known, unless all are printed as JSON at the end."""
    found = []
    for one in findings:
        found.append(one)
        if not as_json:
            _show(one)
    return found


def _show(finding: Finding) -> None:
    state = click.style(f"{finding.state:8}", fg=_COLOURS[finding.state])
    click.echo(f"{state} {finding.name:{_NAME}} {finding.fact}")
    if finding.cure is not None:
        click.echo(f"{'':8} {'':{_NAME}} -> {finding.cure}")


if __name__ == "__main__":
    doctor()
