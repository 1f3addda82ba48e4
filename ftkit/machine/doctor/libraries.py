"""The libraries that ftkit needs, and whether their versions are those that ftkit was tested with."""

import platform

from ftkit.machine.doctor.finding import Finding, missing, ok, problem
from ftkit.machine.versions import Needed, extras, requirements

_MAIN = ("torch", "transformers", "peft", "deepspeed", "bitsandbytes", "datasets", "accelerate")
"""Those that are named with their versions where all is well."""
_SPARED = {
    "deepspeed": "ZeRO and offload need it",
    "bitsandbytes": "4-bit weights (qlora) and 8-bit optimizers need it",
    "accelerate": "trackers need it",
    "plotly": "the report's page needs it",
}
"""What trainings of the usual kind do without."""
_EXTRAS = {
    "excel": "data in Excel workbooks",
    "gguf": "models and exports in one GGUF file",
    "onnx": "exports to ONNX",
    "tune": "ftkit tune",
    "gpu": "what the driver of an NVIDIA GPU says (nvidia-ml-py)",
}


def look_at_libraries() -> list[Finding]:
    """Return what is found of Python, of the libraries that ftkit needs, and of its extras."""
    python = ok("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    return [python, *_needed(requirements()), *_extras(extras())]


def _needed(libraries: list[Needed]) -> list[Finding]:
    """Return one finding for all libraries that are right, and one for each that is not."""
    if not libraries:
        cure = "pip install -e . in the checkout, so that versions can be compared"
        return [problem("libraries", "this is a checkout of ftkit that is not installed", cure)]
    right = [f"{one.name} {one.installed}" for one in libraries if one.is_met and one.name in _MAIN]
    wrong = [_wrong(one) for one in libraries if not one.is_met]
    return [*([ok("libraries", ", ".join(right))] if right else []), *wrong]


def _wrong(library: Needed) -> Finding:
    install = f"pip install '{library.name}{library.wanted}'"
    if library.installed is not None:
        fact = f"{library.installed} is installed, and ftkit was made for and tested with {library.wanted}"
        return problem(library.name, fact, install, is_blocking=True)
    if library.name in _SPARED:
        return missing(library.name, "not installed", f"{install}; {_SPARED[library.name]}")
    return problem(library.name, "not installed, and every training needs it", install, is_blocking=True)


def _extras(groups: dict[str, list[Needed]]) -> list[Finding]:
    """Return one finding for the extras that are there, and one for those that are not."""
    there = [name for name in _EXTRAS if name in groups and all(one.is_met for one in groups[name])]
    absent = [name for name in _EXTRAS if name in groups and name not in there]
    found = [ok("extras", ", ".join(there))] if there else []
    for name in absent:
        lacks = ", ".join(_lack(one) for one in groups[name] if not one.is_met)
        found.append(missing(f"extra {name}", lacks, f"pip install 'ftkit[{name}]', for {_EXTRAS[name]}"))
    return found


def _lack(library: Needed) -> str:
    if library.installed is None:
        return f"no {library.name}"
    return f"{library.name} {library.installed}, not {library.wanted}"
