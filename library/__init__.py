"""What the face of the library (`api`) is made of: a run on the devices that a caller names, and a trained model."""
