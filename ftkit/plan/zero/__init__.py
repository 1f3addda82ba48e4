"""What DeepSpeed's ZeRO stages hold and send on one rank, computed from the trace."""
