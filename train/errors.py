"""The few errors that a user can cause. Each message says what to change."""


class UserError(Exception):
    """Something the user can mend; commands print the message alone and exit with status 2."""


class ConfigError(UserError):
    """The configuration is wrong; the message lists every fault."""


class StorageError(UserError, OSError):
    """Files cannot be read from or written to a place; the message says why, and what to do."""


class DataError(UserError):
    """A corpus or a shard is missing, damaged or of the wrong kind; the message names it."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or of another model."""


class RunDirectoryError(UserError):
    """The output directory holds a different run."""


class InUseError(UserError):
    """Another process writes to a place, or has taken it over; the message says who."""


class DivergedError(UserError):
    """Loss or gradients are no longer finite; nothing was stepped."""
