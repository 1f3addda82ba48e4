"""Compute what DeepSpeed's ZeRO stages hold and send on one rank, from the trace."""
