"""``python -m stages.cluster``. Tasks find their steps in `stages.cluster.parts`, a module that is not __main__."""

import sys

from stages.cluster.parts import main

if __name__ == "__main__":
    sys.exit(main())
