"""The errors that are the user's to mend."""


class UserError(Exception):
    """One or two sentences: the key or file, what was found there, and what to do. Shown without a traceback."""
