"""Check the champion's weights out and print their folder: ``python -m flows.champion``."""

if __name__ == "__main__":  # before imports that take seconds
    from flows.interrupts import run_command

    run_command("flows.cli", "champion_main")
