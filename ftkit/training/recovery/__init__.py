"""Recover from what ends a run before its time: signals, and memory that runs out."""
