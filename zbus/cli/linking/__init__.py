"""What zbus-link does over SSH: finds ComfyUIs, pairs, and keeps ports forwarded."""
