"""`python -m ftkit` is the command `ftkit`."""

from ftkit.machine.heap import keep_heap_whole


def start() -> None:
    """Run the command, in a process whose heap is set; before that nothing else is imported."""
    keep_heap_whole()
    from ftkit.cli import main

    main(prog_name="ftkit")


if __name__ == "__main__":
    start()
