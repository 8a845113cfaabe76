"""The I/O thread's own rooms: what is done with the links, for callers and for other peers."""
