"""The errors that a user can fix."""


class UserError(Exception):
    """One or two sentences: the key or file, what was found there, and what to do. Shown without a traceback."""
