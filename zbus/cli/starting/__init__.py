"""What zbus-up starts: on which devices, where, and how each is kept."""
