"""Tasks of other packages, and our tasks for other packages."""
