"""Text and token data: tokenizers, document readers, TFRecord files and the scripts that make them."""
