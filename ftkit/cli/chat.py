"""`ftkit chat`: talk to a trained language model in the terminal."""

import re
import shlex
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from ftkit.cli.opening import begin_with
from ftkit.cli.options import Name, quieten, user_errors
from ftkit.errors import ConfigError
from ftkit.units import counted

if TYPE_CHECKING:
    from ftkit.inference.generate import Message, Sampling
    from ftkit.inference.opened import Opened

_COMMANDS = "/new begins anew, /bye or Ctrl-D ends, Ctrl-C stops an answer"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run", type=Name())
@click.option("--system", metavar="TEXT", help="A system message at the beginning.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Of one answer.")
@click.option(
    "--temperature", type=click.FloatRange(min=0), default=0.7, show_default=True, help="0 takes the likeliest token."
)
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=0.9, show_default=True, help="Drawn from.")
@click.option("--seed", default=0, show_default=True, help="Of the draws.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A key, such as model.precision=fp32.")
def chat(  # noqa: PLR0913  # one parameter is one flag
    run: str,
    system: str | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    settings: tuple[str, ...],
) -> None:
    """Talk to a trained language model: a line is a turn, /new begins anew, /bye or Ctrl-D ends.

    Ctrl-C stops an answer, and that turn is left out.

    RUN is the folder of a run, an exported folder, or a model of the hub. A model without a chat template goes on from
    the line that it is given. Exit codes: 2 a wrong flag, 4 a model that cannot be loaded.
    """
    with user_errors():
        begin_with(run)
        quieten()
        from ftkit.inference.generate import Sampling
        from ftkit.inference.opened import open_config, open_model

        opened = open_model(run, open_config(run, settings))
        if opened.labels is not None:
            raise ConfigError(f"{run} answers with labels; ask it with ftkit predict {shlex.quote(str(run))} TEXT")
        sampling = Sampling(max_new_tokens, temperature, top_p, seed)
        _talk(opened, [{"role": "system", "content": system}] if system else [], sampling)


def _talk(opened: "Opened", opening: "list[Message]", sampling: "Sampling") -> None:
    """Answer line by line, each answer shown as it is written."""
    messages, has_turns = list(opening), bool(opened.tokenizer.chat_template)
    if sys.stdin.isatty():
        click.echo(f"a line is a turn; {_COMMANDS}", err=True)
    while (line := _next_line()) not in (None, "/bye"):
        if line == "/new":
            messages = list(opening)
        elif line and re.fullmatch(r"/\w*", line):
            click.echo(f"there is no {line}: {_COMMANDS}", err=True)
        elif line:
            asked: list[Message] = [*messages, {"role": "user", "content": line}]
            answer = _answer(opened, asked, sampling)
            if answer is not None and has_turns:
                messages = [*asked, {"role": "assistant", "content": answer}]


def _answer(opened: "Opened", messages: "list[Message]", sampling: "Sampling") -> str | None:
    """Show an answer as it is written, and return it; None where there was none, so that its question is not kept."""
    from transformers import TextStreamer

    from ftkit.inference.generate import write

    streamer = TextStreamer(opened.tokenizer, skip_prompt=True, skip_special_tokens=True)
    try:
        answer = write(opened, messages, sampling, streamer)
    except KeyboardInterrupt:
        click.echo("\nstopped; this turn is left out", err=True)
        return None
    except ConfigError as error:
        click.echo(f"{error}, or begin anew with /new", err=True)
        return None
    if answer.cut_at is not None:
        click.echo(f"(cut after {counted(answer.cut_at, 'token')}; see --max-new-tokens)", err=True)
    return answer.text


def _next_line() -> str | None:
    """Return what is typed next, None at the end."""
    while True:
        try:
            return _typed() if sys.stdin.isatty() else _piped()
        except EOFError:
            return None
        except UnicodeError:
            click.echo("that line is not UTF-8 and was left out; set the terminal to UTF-8", err=True)


def _typed() -> str:
    """Return a line of a terminal, which can be edited, and be longer than the 4,095 bytes that a terminal keeps."""
    with suppress(ImportError):  # some builds of Python are without it
        import readline  # noqa: F401  # `input` takes it for that

    line = input("> ")
    line.encode()  # what is not UTF-8 comes as surrogates under the locale C
    return line.strip()


def _piped() -> str:
    line = sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    return line.decode().strip()


if __name__ == "__main__":
    chat()
