"""What zbus-link does over SSH: finds ComfyUIs, pairs with them, and keeps their ports forwarded."""
