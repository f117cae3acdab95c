"""What people get wrong in the norms: the steps of each, with one of the known mistakes in them."""
