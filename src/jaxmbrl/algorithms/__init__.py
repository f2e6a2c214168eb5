"""Published methods, one file each, by name."""
