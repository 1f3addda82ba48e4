"""`python -m ftkit` is the command `ftkit`."""

from ftkit.cli import main

main(prog_name="ftkit")
