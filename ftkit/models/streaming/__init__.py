"""Frozen layers that come to the device when they run and leave after: a window over the layers of a model."""
