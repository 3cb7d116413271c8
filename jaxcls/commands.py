"""How every command ends: an error becomes a sentence and an exit code."""

import functools
import os
import sys
from collections.abc import Callable, Sequence

from jaxcls.errors import Diverged, UserError

COMPLETE, MISTAKE, DIVERGED, RUN_AGAIN = 0, 2, 3, 75
"""Exit codes. 75 is sysexits.h's EX_TEMPFAIL: nothing is wrong, run it again."""
INTERRUPTED, NOBODY_READS = 130, 141
"""A shell's codes for a process that SIGINT or SIGPIPE ended: 128 + the signal's number."""


def exit_code(
    main: Callable[[Sequence[str]], int | None],
) -> Callable[[Sequence[str]], int]:
    """Makes a command's function, which takes its arguments, return its exit code.

    What the function returns is its exit code; None stands for COMPLETE. A mistake is printed
    as one line on stderr. Any other error passes, with its traceback.
    """

    @functools.wraps(main)
    def command(argv: Sequence[str]) -> int:
        # Not at the top: the processes of jaxcls.prepare import this file, and need no JAX.
        from jaxcls import parallel

        parallel.keep_freed_memory()
        try:
            code = main(argv)
            print(end="", flush=True)  # a pipe that nobody reads shows here at last
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return MISTAKE
        except Diverged as error:
            print(f"diverged: {error}", file=sys.stderr)
            return DIVERGED
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:
            # Python flushes stdout once more when it ends: let that go nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return NOBODY_READS
        return COMPLETE if code is None else code

    return command
