"""Storage of transitions: replay buffers and files."""
