"""Shared definitions: types and interfaces, spaces, metrics, configs, compiler options."""
