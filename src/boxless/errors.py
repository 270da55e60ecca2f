"""The one exception that commands turn into a single line and exit code 2."""


class UserError(Exception):
    """A mistake that the user can mend: one line that names the file or key, what was expected and the fix."""
