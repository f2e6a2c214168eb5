"""Where a value that is not finite came from."""
