"""The machine and its surroundings: processes, hardware, memory, disks, the hub, versions."""
