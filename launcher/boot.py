"""What the launcher has Python run, as `python3 -I -S boot.py`: no environment variable, user site, .pth file or
current directory chooses the code.
"""

import gc
import os
import sys

gc.set_threshold(100_000)  # of 700: what is imported is many objects, and no garbage
HERE = os.path.dirname(os.path.realpath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "site")]

from grit_runtime.__main__ import main  # noqa: E402

code = main(sys.argv[1:])
try:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # it is None if the caller closed it
            stream.flush()
except OSError:
    sys.exit(code)  # which says so
os._exit(code)  # to take all modules apart takes longer than what is left to do after a restore
