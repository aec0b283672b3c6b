"""Parse words, call one workflow function, show the result: one file per command.

`main` is the one place where errors become exit codes.
"""

from __future__ import annotations

import sys

from trainkit.cli.output import Output
from trainkit.errors import TrainkitError


def main(args: list[str] | None = None) -> int:
    """Run the command line; return the exit code.

    0 done; 1 a problem in the input or environment, explained; 2 wrong usage; the trainer's own code when it fails;
    130 on Ctrl-C. A bug keeps its traceback. When the reader of our output has gone (`trainkit ... | head`), Typer ends
    the command with 1 and without a word.
    """
    words = sys.argv[1:] if args is None else args
    try:
        from trainkit.cli.app import app

        app(args=words, prog_name="trainkit")
    except TrainkitError as error:
        Output(as_json="--json" in words).error(error)
        return error.exit_code
    except KeyboardInterrupt:
        code = 130
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    else:
        return 0
    if code == 130:  # Typer turns most of the KeyboardInterrupts into this
        Output().say("interrupted")
    return code
