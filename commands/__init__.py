"""The modes of the command line, one file each: the flags of a mode, and what it does."""
