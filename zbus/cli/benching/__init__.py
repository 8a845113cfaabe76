"""The parts of zbus-bench."""
