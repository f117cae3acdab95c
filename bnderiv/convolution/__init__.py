"""Convolution: its closed form, its reference, its derivation."""
