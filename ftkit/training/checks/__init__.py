"""See that a run is sound: before it starts, at its first steps, and in every number of it."""
