"""Undo the last promotion: ``python -m flows.rollback``."""

if __name__ == "__main__":
    from flows.interrupts import run_command

    run_command("flows.cli", "rollback_main")
