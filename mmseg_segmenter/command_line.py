"""Share the error handling of the command-line tools.

Importing this module imports the whole package, which takes seconds. A tool that
wants a quick ``--help`` parses its arguments first and imports this module after.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import UserError


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """End the program with one line on stderr if the user caused the error.

    A :class:`~mmseg_segmenter.errors.UserError` ends it with exit code 1, an interrupt (Ctrl-C) with 130, as shells
    do. Any other exception is a bug and keeps its traceback.

    Raises:
        SystemExit: in place of ``UserError`` and ``KeyboardInterrupt``.
    """
    try:
        yield
    except UserError as error:
        sys.exit(f'{_program()}: {" ".join(str(error).splitlines())}')
    except KeyboardInterrupt:
        print(f'{_program()}: interrupted', file=sys.stderr)
        sys.exit(130)


def _program() -> str:
    return os.path.basename(sys.argv[0])
