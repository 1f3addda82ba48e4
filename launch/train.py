"""Train under a launcher, such as `deepspeed launch/train.py --method lora`: the command `ftkit train`."""

from ftkit.machine.heap import keep_heap_whole
from ftkit.machine.threads import wait_briefly

if __name__ == "__main__":
    wait_briefly()
    keep_heap_whole()
    from ftkit.cli.train import train

    train()
