"""The frozen trunk of a run: computed once, and not loaded where the cache holds all of it."""
