"""Words for what was planned: what a plan rests on, a whole job, streamed layers, a trunk that runs once."""
