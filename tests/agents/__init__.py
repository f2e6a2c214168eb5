"""A package, as files of other folders bear the same names."""
