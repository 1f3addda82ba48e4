"""What may be changed about a run, and the fastest, the largest or the cheapest change that makes it fit."""
