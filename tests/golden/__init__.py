"""Fixed-seed loss curves, one a family of models: `curves.json`, written by `python -m tests.golden.write`."""
