"""The section of the result folder."""

from typing import Literal

from pydantic import Field

from ftkit.config.section import Name, Section

Tracker = Literal["aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"]


class OutputConfig(Section):
    """The folder of the results, and what goes into it."""

    folder: Name | None = None
    """The result folder; a new one below `runs/` when not named."""
    resume: Literal["never", "auto"] = "never"
    """`auto`: go on with the run that the folder holds, or start it; so the same command can be given again."""
    overwrite: bool = False
    """Empty a result folder that another run has filled."""
    memory_timeline: bool = False
    """Record the live bytes by kind through the second step; the report draws them."""
    memory_snapshot: bool = False
    """CUDA: write torch's own snapshot of the first two steps, for its viewer."""
    disk_patience: float = Field(default=300.0, ge=0.0)
    """Seconds that a run waits for a disk that is full or gone, before it ends with what is whole. Ranks that wait for
    the one that writes count it as lost after `engine.peer_timeout`, so keep this below it."""
    reopen: bool = True
    """After saving, open the result in a new process and compare its weights and the logits of a sample with those in
    memory, some seconds; skipped, and said, where a second copy of the model has no room."""
    trackers: tuple[Tracker, ...] = ()
    """Experiment trackers that are sent every figure; none by default, since most of them talk to a server."""
