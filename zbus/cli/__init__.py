"""What the command line does: one module for each subcommand of ``python -m zbus``."""
