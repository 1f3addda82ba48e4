"""The command line is quick to help, and its help says what the configuration says."""

import resource
import subprocess
import sys

import pytest
import yaml
from click.testing import CliRunner

from ftkit.cli import _COMMANDS, main
from ftkit.cli.train import _go_on
from ftkit.config.files import dump_config, load_config


def test_help_imports_no_heavy_library():
    code = "import sys; from ftkit.cli import main; main(['--help'], standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "transformers", "deepspeed", "peft", "datasets", "pydantic", "rich"}
    assert "train" in done.stdout


def test_help_is_there_at_once():
    """Processor time, the best of three, since a busy machine is no failure."""
    taken = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "ftkit", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(taken) < 0.3


@pytest.mark.parametrize(
    "command", [["data"], ["train"], ["plan"], ["profile"], ["report"], ["config"], ["config", "show"]]
)
def test_the_help_of_each_command_needs_no_torch(command):
    call = f"main({[*command, '--help']!r}, standalone_mode=False)"
    code = f"import sys; from ftkit.cli import main; {call}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "transformers", "deepspeed", "peft", "datasets"}


def test_show_prints_the_configuration_that_the_same_flags_would_run():
    flags = [
        "--method",
        "qlora",
        "--rank",
        "4",
        "--gradient-checkpointing",
        "all",
        "--target",
        "query",
        "--target",
        "key",
    ]
    shown = yaml.safe_load(CliRunner().invoke(main, ["config", "show", *flags]).output)
    assert shown["method"]["name"] == "qlora"
    assert (shown["method"]["rank"], shown["method"]["targets"]) == (4, ["query", "key"])
    assert shown["model"]["recompute"] == "layer"


def test_another_method_keeps_of_a_preset_what_it_has_a_field_for():
    flags = ["--preset", "gpt2-lora-wished", "--method", "qlora"]
    shown = yaml.safe_load(CliRunner().invoke(main, ["config", "show", *flags]).output)
    assert (shown["method"]["name"], shown["method"]["rank"]) == ("qlora", 16)


def test_presets_are_listed_with_what_they_are():
    output = CliRunner().invoke(main, ["config", "presets"]).output
    assert "gpt2-lora-wished" in output
    assert len(output.splitlines()) >= 5


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "ftkit", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: ftkit")


def test_a_full_disk_below_what_is_printed_is_one_sentence():
    with open("/dev/full", "w") as full:  # noqa: PTH123  # a device
        done = subprocess.run([sys.executable, "-m", "ftkit", "config", "show"], stdout=full, stderr=-1, text=True)
    assert done.returncode == 7
    assert done.stderr == (
        "error: cannot write what comes out: No space left on device; free some space, or write elsewhere\n"
    )


def test_the_plan_of_a_plain_lora_loads_no_engine_no_4_bit_kernels_no_plots_and_no_solver_until_that_is_called():
    call = "main(['plan', '--model', 'gpt2', '--gpu', 't4', '--max-length', '64'], standalone_mode=False)"
    solver = "from transformers.loss.loss_for_object_detection import linear_sum_assignment as solve"
    solved = "print(*solve([[1, 0], [0, 1]], maximize=False)[1])"
    code = f"import sys; from ftkit.cli import main; {call}; print(*sys.modules); {solver}; {solved}"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("verdict                        fits")
    *_, modules, solution = done.stdout.splitlines()
    loaded = set(modules.split())
    assert "torch" in loaded
    assert not loaded & {"deepspeed", "bitsandbytes", "plotly", "datasets", "scipy", "scipy.optimize"}
    assert solution == "1 0"


@pytest.mark.parametrize("module", sorted({module for module, _, _ in _COMMANDS.values()}))
def test_each_command_is_a_program_of_its_own_that_refuses_an_unknown_flag(module):
    done = subprocess.run([sys.executable, "-m", module, "--no-such-flag"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "No such option" in done.stderr


def test_what_the_deepspeed_launcher_puts_before_the_subcommand_is_taken():
    done = CliRunner().invoke(main, ["--local_rank=0", "config", "show"])
    assert done.exit_code == 0, done.output
    assert "local_rank" not in CliRunner().invoke(main, ["--help"]).output


@pytest.mark.parametrize(
    "chosen",
    [
        ["model.offload_activations=true", "model.recompute=layer"],
        ["engine.stream_layers=disk", "engine.stream_micro_batches=all", "batch.micro_batch_size=4"],
        ["engine.zero_stage=0", "engine.stream_layers=ram"],  # chosen where DeepSpeed's launcher started the run
    ],
)
def test_a_run_that_is_resumed_with_fit_keeps_nothing_that_the_planner_chooses(tmp_path, chosen):
    (tmp_path / "config.yaml").write_text(dump_config(load_config(settings=["method.name=lora", *chosen])))
    flags = {"file": None, "settings": ()}
    _go_on(flags, tmp_path, chooses=True)
    again = load_config(flags["file"], settings=list(flags["settings"]))
    plain = load_config(settings=["method.name=lora"])
    assert (again.model, again.engine, again.batch) == (plain.model, plain.engine, plain.batch)


@pytest.mark.parametrize(
    ("chosen", "left"),
    [
        (["engine.zero_stage=3", "engine.offload_optimizer=cpu"], ["engine.name=deepspeed"]),
        (["engine.name=deepspeed", "engine.zero_stage=2"], ["engine.name=deepspeed"]),
        (["engine.zero_stage=3", "engine.offload_optimizer=nvme", "engine.nvme_path=/tmp"], None),
    ],
    ids=["by its stage", "by its name", "offload to a disk, which the planner never chooses"],
)
def test_a_run_of_deepspeed_that_is_resumed_with_fit_stays_so_and_its_stage_is_chosen_anew(tmp_path, chosen, left):
    (tmp_path / "config.yaml").write_text(dump_config(load_config(settings=chosen)))
    flags = {"file": None, "settings": ()}
    _go_on(flags, tmp_path, chooses=True)
    again = load_config(flags["file"], settings=list(flags["settings"]))
    assert again.engine == load_config(settings=chosen if left is None else left).engine
