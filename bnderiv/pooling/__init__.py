"""Average and max pooling: their closed forms, their references, their derivation."""
