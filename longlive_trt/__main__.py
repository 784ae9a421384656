"""``python -m longlive_trt`` is ``longlive-trt``."""

import sys

from longlive_trt.cli import main

if __name__ == "__main__":
    sys.exit(main())
