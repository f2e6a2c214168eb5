"""Find the origin of a value that is not finite."""
