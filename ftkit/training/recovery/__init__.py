"""What ends a run before its time, and how it goes on: signals, and memory that runs out."""
