"""Planning in a learned model by shooting: PETS."""
