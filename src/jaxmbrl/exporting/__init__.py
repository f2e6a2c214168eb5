"""Exporting a trained policy to a file that is used without this package."""
