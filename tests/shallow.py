"""Networks of size pico with few blocks and channels, for tests in which any network will do.

``usefixtures("shallow")`` makes them so in a module of tests; ``python -m shallow WORDS`` is ``caswit WORDS`` with
them, in a process of its own.
"""

import os
import sys

from caswit.nn.caswit import SIZES

PICO = SIZES["pico"] | {"embed_dim": 16, "depths": (2, 1, 1, 1), "decoder_channels": 16}
COMMAND = sys.executable, "-m", "shallow"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

if __name__ == "__main__":
    from caswit.__main__ import main

    SIZES["pico"] = PICO
    main()
