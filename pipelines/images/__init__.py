"""Bytes to pixels: one decoder and one preprocessing for training and scoring alike; never TensorFlow, never Ray."""
