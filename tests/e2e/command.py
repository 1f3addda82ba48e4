"""`ftkit train` as a user types it."""

from click.testing import CliRunner

from ftkit.cli import main

QUICK = ("--set", "output.reopen=false")
"""No new process opens what was saved, which takes some seconds; tests/training/reopening shows what it finds."""


def run(*arguments):
    """Run `ftkit train` in this process."""
    return CliRunner().invoke(main, ["train", *map(str, arguments)])


def flags(work, output, *more):
    """Return the flags of a run of some seconds; what comes later wins."""
    start = ["--model", work / "bert", "--dataset", work / "texts.csv", "--output", output, "--precision", "fp32"]
    return [*start, "--epochs", 4, "--global-batch-size", 16, "--set", "training.log_every=2", *QUICK, *more]
