"""Attention: the layer, its kinds, their backends, and what decoding keeps."""
