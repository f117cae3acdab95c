"""Two-dimensional convolution: its closed form, its reference, its derivation."""
