"""The error that every command tells without a traceback; those of training derive from it."""


class UserError(Exception):
    """Something the user can mend; commands print the message alone and exit with status 2."""
