"""Methods that act by tree search over discrete actions."""
