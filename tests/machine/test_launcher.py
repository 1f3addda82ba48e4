"""A process is taken for a launcher by the program that it runs, and not by a word that it was given."""

import pytest

from ftkit.machine.launcher import program


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("/opt/venv/bin/python3.11 /opt/venv/bin/ftkit compare --methods lora", "ftkit"),
        ("python -W ignore -u -m ftkit compare", "ftkit"),
        ("python -u -m deepspeed.launcher.launch --world_info=e30 train.py", "deepspeed.launcher.launch"),
        ("/opt/venv/bin/torchrun --nproc-per-node 2 launch/train.py", "torchrun"),
        ("python submit.py ftkit", "submit.py"),
        ("make -C /home/somebody/ftkit train", "make"),
        ("bash ftkit", "bash"),
        ("python", "python"),
    ],
)
def test_a_command_s_program_is_its_file_or_what_it_gives_to_python(command, name):
    assert program(command.split()) == name
