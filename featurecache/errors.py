"""The errors users meet: each says what was seen, why it is wrong, and the way out.

Every error is a `FeatureCacheError` and also the built-in that general code would catch. The command line prints the
message and leaves with `exit_code`; anything that is not a `FeatureCacheError` is a defect of ours and keeps its traceback.
"""


class FeatureCacheError(Exception):
    """Root of the errors that we explain."""

    exit_code = 1
    __str__ = Exception.__str__  # KeyError would print its message in quotes


class ConfigError(FeatureCacheError, ValueError):
    """Settings that cannot work; the message lists every problem."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        count = f"{len(problems)} problems:\n  - " if len(problems) > 1 else ""
        super().__init__(count + "\n  - ".join(problems))

    def __reduce__(self) -> tuple[type, tuple[list[str]]]:
        return type(self), (self.problems,)


class UsageError(ConfigError):
    """A call that cannot be parsed: a value of another type, an unknown choice, a name that is missing or unknown."""

    exit_code = 2


class UnknownNameError(FeatureCacheError, KeyError):
    """A name that no file of the room answers to."""


class DatasetError(FeatureCacheError, ValueError):
    """A data set that cannot be used as asked."""


class DatasetNotFoundError(DatasetError, FileNotFoundError):
    """No data set where one was named."""


class UnreadableSampleError(DatasetError, OSError):
    """An image that cannot be decoded; names the sample and the reason."""

    IN_A_STORE = "its row stays, marked as skipped, and no other row moves"

    def __init__(self, sample_id: str, reason: str, when_skipped: str = IN_A_STORE) -> None:
        self.sample_id, self.reason, self._when_skipped = sample_id, reason, when_skipped
        super().__init__(
            f"cannot read {sample_id!r}: {reason}. Repair or remove the file, or give --on-error skip: {when_skipped}."
        )

    def explain_skipping(self, when_skipped: str) -> "UnreadableSampleError":
        """Return the same error of a verb in which --on-error skip does something else than in an extraction."""
        return type(self)(self.sample_id, self.reason, when_skipped)

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.sample_id, self.reason, self._when_skipped)


class PictureMemoryError(FeatureCacheError, MemoryError):
    """Too little memory for one picture; names it. Never skipped: another time there may be enough."""


class BackboneError(FeatureCacheError, ValueError):
    """A backbone that cannot be built or asked for what was asked."""


class WeightsError(BackboneError):
    """Weights that are missing, unsafe to read, or of another architecture."""


class FeatureValueError(FeatureCacheError, ValueError):
    """Features that must not be stored: NaN, infinite, or beyond the store's dtype."""


class PlaceError(FeatureCacheError, OSError):
    """A place beyond this machine that cannot be reached, or only be read."""


class StoreError(FeatureCacheError, ValueError):
    """A feature store that cannot be used as asked."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """No store where one was named."""


class StoreMismatchError(StoreError):
    """A store of another identity; the message names each field that differs."""


class StoreContentsError(StoreError):
    """A store of the right identity that lacks rows, layers or tokens."""


class StoreDamagedError(StoreError, OSError):
    """Bytes on disk that are not the bytes that were committed."""


class StoreBusyError(StoreError):
    """A store that another process is writing."""


class WorkerError(FeatureCacheError, RuntimeError):
    """A worker process that ended before its work did, or could not begin it."""


class DeviceError(FeatureCacheError, RuntimeError):
    """A device that is absent, or too small for what was asked."""


class RunError(FeatureCacheError, ValueError):
    """A run folder that is missing, incomplete, or holds another run."""


class DivergedError(RunError):
    """The loss of a training ceased to be a number."""


class RunWriteError(RunError):
    """A run cannot be written where it is to be; what is there of it goes on later."""


class InterruptedRunError(FeatureCacheError):
    """The user stopped a run that can go on later."""

    exit_code = 75
