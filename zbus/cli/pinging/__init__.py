"""What zbus-ping does: each leg of a link tried, and reported."""
