"""The command line of ftrain."""


def main() -> None:
    """Runs the command `ftrain`."""
    import sys

    try:
        from .main import app

        app()
    except KeyboardInterrupt:  # before a command could take it
        sys.exit(130)
