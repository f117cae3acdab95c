"""Fully connected layer and flatten: their closed forms, their references, their derivation."""
