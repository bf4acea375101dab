"""Models from elsewhere and for elsewhere: Hugging Face's, in and out, and TensorFlow's SavedModel."""
