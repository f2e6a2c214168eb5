"""The subcommands of `jaxmbrl`."""
