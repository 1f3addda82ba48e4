"""Where the ranks of a job meet, and what is said where they cannot."""

import socket

import pytest

from ftkit.errors import DeviceError
from ftkit.machine.process import ProcessContext, join


def test_a_port_that_another_job_has_is_named_with_the_flags_that_choose_another(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        place = {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in place.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(DeviceError, match=rf"cannot meet at 127\.0\.0\.1, port {port}: .*--master_port"):
            join(ProcessContext(rank=0, world_size=2), 5.0)
