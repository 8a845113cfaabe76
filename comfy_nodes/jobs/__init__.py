"""Jobs: given to other peers by the nodes here, and run here for others."""
