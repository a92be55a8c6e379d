"""The contract of every stage: typed parameters, one identity, tracked runs, errors a person can act on.

A stage is a module with a ``main(run)`` and one closing line::

    if __name__ == "__main__":
        run_stage("dedup", main)
"""

from stages.contract.accounting import Account
from stages.contract.errors import UserError
from stages.contract.progress import Progress
from stages.contract.run import Run, run_stage

__all__ = ["Account", "Progress", "Run", "UserError", "run_stage"]
