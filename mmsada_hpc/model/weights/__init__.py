"""I3D weights of other projects, read and written: DeepMind's TensorFlow checkpoints and two PyTorch ports (spec 9)."""
