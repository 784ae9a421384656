"""The torch models, their checkpoints, and the export to ONNX.

``longlive_trt.export(...)`` is the function of ``longlive_trt.making.exporting``: this package can
be called, because it and the function have one name.
"""

import sys
from types import ModuleType
from typing import Any

import longlive_trt


class _CallableArea(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return longlive_trt.load_name("export")(*arguments, **options)


sys.modules[__name__].__class__ = _CallableArea
