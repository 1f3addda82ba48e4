"""Texts that are nearly the same: what a text is made of, which of them share most of it, and what to tell of it."""
