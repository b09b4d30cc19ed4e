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


class MemoryExceededError(UserError):
    """A rank has no memory left for what the configuration asks."""


def named(error: Exception) -> Exception:
    """An error as it is to be told: one of lacking memory says what to do about it."""
    text = str(error)
    is_torch = isinstance(error, RuntimeError) and "memory" in text and "allocate" in text
    if not isinstance(error, MemoryError) and not is_torch:
        return error
    asked = next((line for line in text.splitlines() if "allocate" in line), "no memory is left")
    return MemoryExceededError(
        f"model, batch: a rank lacks memory ({asked}): lower batch.micro_sequences or "
        "data.sequence_tokens, set zero.stage=3 or layout.recompute=full, or take more ranks or a "
        "smaller model; python -m tools.plan says what fits"
    )
