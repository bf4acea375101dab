"""Run by the Python of .venv-peers, where Hugging Face and PyTorch are: nothing of this project is imported here."""
