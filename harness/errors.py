"""The one exception that means: the user gave us something that can't work."""


class UserError(Exception):
    """Bad input. The message is one sentence: what is wrong and what to do; it is shown without a traceback."""
