"""LongLive video generation on compiled engines.

The areas (``configs``, ``export``, ``engines``, ...) are sub-packages of this one. An installed
package holds them inside; in a checkout they lie beside this folder, so its parent joins the
search path of sub-packages.
"""

from pathlib import Path

__version__ = "0.1.0"

_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "configs" / "schema.py").is_file():
    __path__.append(str(_checkout))
