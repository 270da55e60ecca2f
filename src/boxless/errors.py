"""Errors that commands turn into a single line and an exit code."""

import re

_SEPARATORS = re.compile("[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
"""Characters other than a newline that end a line, which a path or name from a file may hold."""

_FULL = ("out of memory", "not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


class UserError(Exception):
    """A mistake that the user can fix: one line that names the file or key, what was expected and the fix."""

    def __init__(self, message: str) -> None:
        # PyTorch re-raises what a data worker raised, with the worker's traceback as its message.
        line = message.rpartition(f"{__name__}.UserError: ")[2].strip()
        super().__init__(_SEPARATORS.sub(" ", line))


class Unfinished(BaseException):
    """A signal asked a command to end before its work was done; what was done is kept.

    Not an `Exception`, as KeyboardInterrupt is none: it may be raised anywhere, and nobody there should handle it.

    Args:
        message: one line.
        signal: signal that asked for it.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message, signal)
        self.signal = signal

    def __str__(self) -> str:
        return str(self.args[0])

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, else 75: a temporary failure (EX_TEMPFAIL), try again."""
        return 130 if self.signal == 2 else 75


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out: PyTorch's for a GPU or a CPU, or Python's own."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL)
    )
