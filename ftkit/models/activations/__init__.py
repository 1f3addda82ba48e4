"""What layers keep of a forward for their backward: what they compute again instead, and what waits on the host."""
