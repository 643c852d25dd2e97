"""What the launcher has Python run, as `python3 -I -S boot.py`: no environment variable, user site, .pth file or
current directory chooses the code.
"""

import os
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "site")]

from grit_runtime.__main__ import main  # noqa: E402

sys.exit(main(sys.argv[1:]))
