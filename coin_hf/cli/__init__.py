"""The command line: `coin-hf COMMAND`."""

from coin_hf.cli.app import main

__all__ = ["main"]
