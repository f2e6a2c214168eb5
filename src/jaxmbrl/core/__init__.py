"""What every part is written in: types and interfaces, spaces, metrics, configs, compiler options."""
