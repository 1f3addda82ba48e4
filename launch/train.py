"""Train under a launcher, such as `deepspeed launch/train.py --method lora`: the command `ftkit train`."""

from ftkit.machine.heap import keep_heap_whole

if __name__ == "__main__":
    keep_heap_whole()
    from ftkit.cli.train import train

    train()
