"""Fully connected layer and flatten."""
