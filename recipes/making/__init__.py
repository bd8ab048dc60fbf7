"""Parts of `finetune.py`: data, networks, card."""
