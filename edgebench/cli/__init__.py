"""The command line: verbs are found by file name and imported when used; errors become one line and an exit code here.

Exit codes: 0 done; 2 the request is wrong; 3 nothing could be measured; 4 some trials failed; 5 this machine lacks
something; 130 and 143 interrupted by Ctrl-C and by SIGTERM, with everything measured so far kept.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import signal
import sys
from types import FrameType

import click

from edgebench import __version__
from edgebench.errors import EdgebenchError, Terminated, UnknownNameError

_INTERRUPTED, _TERMINATED = 130, 143
_GO_ON = "run the same command again; a session that had begun to measure goes on with: edgebench profile --resume"


class Verbs(click.Group):
    """A group whose commands are the modules of this package."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names of the verb files."""
        return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one verb."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(f"edgebench.cli.{cmd_name}").command
        if not isinstance(command, click.Command):
            raise TypeError(f"edgebench.cli.{cmd_name}.command is no click command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a verb, or say which one was meant."""
        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            raise UnknownNameError("command", args[0], self.list_commands(ctx), "see edgebench --help")
        return super().resolve_command(ctx, args)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="edgebench")
def cli() -> None:
    """Measure small language models on small machines, and say how far to trust the numbers.

    The main job: edgebench profile --device cpu
    """


def _stop_on(number: signal.Signals, error: type[BaseException]) -> None:
    """The first signal raises ``error``, so that what was measured is shown; a second one ends the program at once."""

    def at_once(again: int, _frame: FrameType | None) -> None:
        os.write(2, b"\nedgebench: stopped at once; what was recorded is kept.\n")
        os._exit(128 + again)  # the kernel ends the child, and the sampler ends when its pipe closes

    def first(_number: int, _frame: FrameType | None) -> None:
        for every in (signal.SIGINT, signal.SIGTERM):
            signal.signal(every, at_once)
        raise error

    signal.signal(number, first)


def _say(what: str, next_step: str) -> None:
    click.echo(f"edgebench: {what}", err=True)
    click.echo(f"  next: {next_step}", err=True)


def _run() -> int:  # noqa: PLR0911 - one for each way to end
    stdout = sys.stdout
    try:
        result = cli.main(prog_name="edgebench", standalone_mode=False)
    except EdgebenchError as error:
        _say(error.what, error.next_step)
        return error.exit_code
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        _say(error.format_message(), f"see {context.command_path if context else 'edgebench'} --help")
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted; what was measured is kept.", _GO_ON)
        return _INTERRUPTED
    except Terminated:
        _say("told to stop; what was measured is kept.", _GO_ON)
        return _TERMINATED
    except SystemExit:
        if sys.stdout is stdout:
            raise
        # The reader of our output went away (``| head``), and click has put a wrapper around it: nothing is wrong, but
        # nothing more can be said either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    return result if isinstance(result, int) else 0


def main() -> None:
    """Entry point of ``edgebench``."""
    _stop_on(signal.SIGTERM, Terminated)
    _stop_on(signal.SIGINT, KeyboardInterrupt)
    sys.exit(_run())
