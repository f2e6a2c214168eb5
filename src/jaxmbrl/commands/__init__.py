"""What the `jaxmbrl` command does."""
