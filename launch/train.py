"""Train under a launcher, such as `deepspeed launch/train.py --method lora`: the command `ftkit train`."""

from ftkit.cli.train import train

if __name__ == "__main__":
    train()
