"""What a fleet needs beside what its servers need."""

from dataclasses import dataclass, field

from longlive_trt.serving.cluster.placement import Scaling


@dataclass(frozen=True, kw_only=True)
class FleetSettings:
    store: str
    """Where owners and states are: a folder that all machines share, s3:// or gs://."""
    save_every_s: float = 30
    """A machine that is lost costs no more of a video than this."""
    scaling: Scaling = field(default_factory=Scaling)
    gateways: int = 1
    keep_days: float = 7
    """So long stays in the store what nobody came back to."""
    bundle_key: str | None = None
    """What every host must have."""
    gpus_per_host: float = 0
    cpus_per_host: float = 1
    patience_s: float = 600
    """A session that moves waits so long for a free slot."""
    grace_s: float = 120
    """A host that is stopped has so long to give its sessions away."""
