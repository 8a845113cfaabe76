"""Values as bytes: what a value is, and the memory of its tensors, on its way out and in."""
