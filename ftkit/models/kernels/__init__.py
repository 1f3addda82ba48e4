"""Exact replacements of what transformers and PEFT compute, which save time or memory; each says what it equals."""
