"""A directive that asks `ftkit plan` while the documentation is built, so that a page's figures are the planner's own.

    ```{ftkit-plans} --model llama-2-7b --gpu rtx3090
    as it is |
    cut smaller | --micro-batch-size 1
    ```

The argument is what all rows have; each line is a row: words, a bar, and the flags that it adds.
"""

import shlex
from typing import ClassVar

from click.testing import CliRunner
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from ftkit.cli import main
from ftkit.plan.predicted import TracedPrediction
from ftkit.units import format_bytes

HEAD = "| | add to the command | peak of each device | host memory | a step | fits |"
DOES_NOT_FIT = 8


class PlanTable(SphinxDirective):
    """The table of a few plans."""

    has_content: ClassVar[bool] = True
    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Return the command and the table."""
        lines = [line for line in self.content if line.strip()]
        rows = [self._row(words.strip(), flags.strip()) for words, _, flags in (line.partition("|") for line in lines)]
        command = f"```console\n$ ftkit plan {self.arguments[0]}\n```"
        return self.parse_text_to_nodes("\n".join([command, "", HEAD, "|---|---|---:|---:|---:|---|", *rows]))

    def _row(self, words: str, flags: str) -> str:
        asked = ["plan", *shlex.split(f"{self.arguments[0]} {flags}"), "--json"]
        done = CliRunner().invoke(main, asked)
        if done.exit_code not in (0, DOES_NOT_FIT):
            raise self.error(f"ftkit {shlex.join(asked)}: {done.output}")
        plan = TracedPrediction.model_validate_json(done.stdout)
        cells = [words, f"`{flags}`" if flags else "", format_bytes(plan.peak_process_bytes)]
        cells += [format_bytes(plan.host_bytes), f"{plan.step_seconds:.1f} s", "yes" if plan.fits else "no"]
        return "| " + " | ".join(cells) + " |"


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx of the directive."""
    app.add_directive("ftkit-plans", PlanTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
