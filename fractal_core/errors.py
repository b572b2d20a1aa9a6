"""The one exception that a user is meant to read."""


class Refused(ValueError):
    """Something asked for cannot be done; the message is one sentence that names the remedy.

    It is raised before work starts and changes nothing on disk. The command prints it and exits
    with 2; anything else that reaches the top is a bug and keeps its traceback.
    """
