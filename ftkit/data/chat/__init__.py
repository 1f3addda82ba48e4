"""Conversations: brought into one form, written by the chat template, and checked against what it wrote."""
