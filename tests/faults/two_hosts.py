"""Two hosts on one machine: network namespaces with names of their own, joined by a cable, that share the disk.

What carries a command to another host (srun, pdsh, ssh) is stood in for by small programs that enter its namespace:
they are what a cluster has and this machine has not. All else is what a user has: the files of launch/, torchrun, the
launcher of DeepSpeed, one process group over the cable.
"""

import contextlib
import subprocess
from pathlib import Path

HOSTS = {"node-1": "10.77.0.1", "node-2": "10.77.0.2"}
_ENTER = 'exec ip netns exec "ftkit-$host" unshare --uts sh -c \'hostname "$0"; exec "$@"\' "$host" '


class TwoHosts:
    """The namespaces, and a folder of the programs that reach them."""

    def __init__(self, folder):
        self.tools = folder / "tools"

    def __enter__(self):
        for host in HOSTS:
            run("ip", "netns", "add", f"ftkit-{host}")
            names = Path("/etc/netns", f"ftkit-{host}")
            names.mkdir(parents=True)
            (names / "hosts").write_text(
                "".join(f"{ip} {name}\n" for name, ip in HOSTS.items()) + "127.0.0.1 localhost\n"
            )
        run("ip", "link", "add", "ftkit-1", "type", "veth", "peer", "name", "ftkit-2")
        for (host, address), end in zip(HOSTS.items(), ("ftkit-1", "ftkit-2"), strict=True):
            inside = ("ip", "-n", f"ftkit-{host}")
            run("ip", "link", "set", end, "netns", f"ftkit-{host}")
            run(*inside, "link", "set", end, "name", "eth0")
            run(*inside, "addr", "add", f"{address}/24", "dev", "eth0")
            run(*inside, "link", "set", "eth0", "up")
            run(*inside, "link", "set", "lo", "up")
        self._write_tools()
        return self

    def __exit__(self, *_):
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", f"ftkit-{host}"], check=False, capture_output=True)
            names = Path("/etc/netns", f"ftkit-{host}")
            with contextlib.suppress(FileNotFoundError):
                (names / "hosts").unlink()
                names.rmdir()

    def _write_tools(self):
        self.tools.mkdir(parents=True)
        wait = "code=0; for pid in $pids; do wait $pid || code=$?; done; exit $code"
        tools = {
            # Slurm: one task a node
            "scontrol": "echo node-1; echo node-2",
            # options, a host, and a shell's line
            "ssh": 'while [ "${1#-}" != "$1" ]; do [ "$1" = -o ] && shift; shift; done\nhost=$1; shift\n'
            f'{_ENTER} sh -c "$*"',
        }
        # options, and a command for each host
        tools["srun"] = (
            'while [ "${1#--}" != "$1" ]; do shift; done\n'
            + "\n".join(f'(host={host}; {_ENTER} "$@") & pids="$pids $!"' for host in HOSTS)
            + f"\n{wait}"
        )
        # a shell's line for each host, %n its number
        tools["pdsh"] = (
            'while [ "${1#-}" != "$1" ]; do case $1 in -f|-w) shift;; esac; shift; done\n'
            + "\n".join(
                f'(host={host}; {_ENTER} sh -c "$(echo "$*" | sed s/%n/{number}/g)") & pids="$pids $!"'
                for number, host in enumerate(HOSTS)
            )
            + f"\n{wait}"
        )
        for name, body in tools.items():
            (self.tools / name).write_text(f"#!/bin/sh\n{body}\n")
            (self.tools / name).chmod(0o755)


def run(*command):
    """Run a command that has to succeed."""
    subprocess.run(command, check=True, capture_output=True, text=True)


def may_make_hosts():
    """Return whether this user may make namespaces, and this machine has what that takes."""
    with contextlib.suppress(FileNotFoundError):
        if subprocess.run(["ip", "netns", "add", "ftkit-try"], check=False, capture_output=True).returncode == 0:
            run("ip", "netns", "del", "ftkit-try")
            return True
    return False
