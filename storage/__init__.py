"""Files, wherever they are: paths and URLs, finished files moved into place, progress."""
