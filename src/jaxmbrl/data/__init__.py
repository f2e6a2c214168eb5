"""Where transitions are kept: replay buffers and files."""
