"""Lets `python -m coin_hf` and `accelerate launch -m coin_hf` run the command line."""

from coin_hf.cli import main

if __name__ == "__main__":
    main()
