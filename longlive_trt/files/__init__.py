"""Files that appear whole or not at all, and never in the place of somebody else's."""

from longlive_trt.files.facts import (
    cache_folder,
    free_bytes,
    is_inside,
    real_path,
    sha256_file,
)
from longlive_trt.files.ours import (
    BUNDLE,
    EXPORT,
    MANIFEST_NAME,
    RECORD_NAME,
    Ours,
    foreign_file,
    is_sealed,
    require_place,
    require_replaceable,
    seal_of,
)
from longlive_trt.files.partials import (
    Claim,
    Ownership,
    discard_abandoned,
    locked,
    scratch_folder,
)
from longlive_trt.files.publishing import (
    blamed_on,
    give_name,
    make_readable,
    publish_directory,
    publish_file,
    replace_directory,
    require_ordinary,
)

__all__ = [
    "BUNDLE",
    "EXPORT",
    "MANIFEST_NAME",
    "RECORD_NAME",
    "Claim",
    "Ours",
    "Ownership",
    "blamed_on",
    "cache_folder",
    "discard_abandoned",
    "foreign_file",
    "free_bytes",
    "give_name",
    "is_inside",
    "is_sealed",
    "locked",
    "make_readable",
    "publish_directory",
    "publish_file",
    "real_path",
    "replace_directory",
    "require_ordinary",
    "require_place",
    "require_replaceable",
    "scratch_folder",
    "seal_of",
    "sha256_file",
]
