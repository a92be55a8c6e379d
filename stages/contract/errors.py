class UserError(Exception):
    """Something the person at the keyboard can mend. Printed as one line, never with a traceback.

    The message says what was wrong, the offending value, where it stands and what to do.
    """


class Preempted(Exception):
    """The stage was told to stop and left a checkpoint from which the next execution goes on."""
