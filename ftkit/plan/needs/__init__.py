"""The memory that a run needs, on the device and on the host.

Also the parts of it that a traced step alone does not show: streamed layers, a trunk that ran before, a mixture.
"""
