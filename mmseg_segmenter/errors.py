"""Errors that a user can set right.

The command-line tools print a :class:`UserError` as one line and exit with
code 1; any other exception is a bug and keeps its traceback. Each class is also the
built-in exception that Python code would expect, so ``except ValueError`` and
``except FileNotFoundError`` keep working.
"""


class UserError(ValueError):
    """An argument, a configuration or a file is not what it must be.

    The message names the argument or file, the value found and the value
    expected.
    """


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder does not exist."""


class ExistingFileError(UserError, FileExistsError):
    """A destination exists and was not to be replaced."""


class NotAFileError(UserError, IsADirectoryError):
    """A folder is where a file is expected."""


class FileAccessError(UserError, OSError):
    """The system refuses to read or write a file."""


class MissingPackageError(UserError, ImportError):
    """An optional package is not installed; the message says which command installs it."""


class BadSampleError(UserError):
    """An image or a mask of a dataset cannot be used; the message begins with its path.

    An error of a worker process of a data loader reaches the main process with the whole traceback in its message;
    it is dropped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f'{type(self).__name__}: ')[2].rstrip())


def describe(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
