"""python -m stages.evaluation.reporting: write reports/index.html from the stages' reports."""

import sys
from pathlib import Path

from stages.contract.errors import UserError
from stages.evaluation.reporting.page import write_page


def main() -> int:
    """Write the page and return the exit code: 0 done, 1 nothing to show."""
    try:
        print(write_page(Path.cwd()))
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
