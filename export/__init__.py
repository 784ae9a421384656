"""The torch models, their checkpoints, and the export to ONNX.

``longlive_trt.export(...)`` is the function of ``longlive_trt.making.exporting``: this package can
be called, because it and the function have one name.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from longlive_trt.extras import with_install_hint

if TYPE_CHECKING:
    from longlive_trt.export.exporter import ExportResult


class _CallableArea(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> "ExportResult":
        with with_install_hint():
            from longlive_trt.making.exporting import export

        return export(*arguments, **options)


sys.modules[__name__].__class__ = _CallableArea
