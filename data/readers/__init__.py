"""Readers of text corpora: one file a format, listed in `table.py`."""
