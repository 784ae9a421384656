"""Every error that a user can cause, and the exit code it ends with.

``LongLiveError``        the base; exit code 1
├── ``UsageError``       the request itself is wrong (options, configuration, prompts); exit code 2
│   └── ``ConfigError``  a configuration key or value
├── ``CheckpointError``  weights that cannot be read, do not fit, or are not finite
├── ``ExportError``      a graph that could not be made, or does not compute what torch computes
├── ``BundleError``      a bundle that is incomplete, altered, newer, or made for something else
├── ``EngineError``      an engine that cannot be built, loaded or run here
│   └── ``NotFiniteError`` a block whose latents are not numbers
├── ``PluginError``      a kernel that cannot be compiled, or arguments it does not take
│   └── ``LostGpuError`` a fault after which nothing of this process runs on the GPU any more
├── ``MissingExtraError`` an optional dependency that is not installed
└── ``OutputError``      a video, picture or state file that cannot be written

A message says what was wrong, where, and what to do.
"""


class LongLiveError(Exception):
    """An expected failure; the command line prints its message without a traceback."""

    exit_code = 1


class UsageError(LongLiveError):
    exit_code = 2


class ConfigError(UsageError):
    pass


class CheckpointError(LongLiveError):
    pass


class ExportError(LongLiveError):
    pass


class BundleError(LongLiveError):
    pass


class EngineError(LongLiveError):
    pass


class NotFiniteError(EngineError):
    pass


class PluginError(LongLiveError):
    pass


class LostGpuError(PluginError):
    pass


class MissingExtraError(LongLiveError):
    pass


class OutputError(LongLiveError):
    pass
